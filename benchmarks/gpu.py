"""What SE costs on a GPU: `python benchmarks/gpu.py --minutes 9 --results benchmarks/RESULTS.md`.

training and inference: plain, timm's SE and ours, each eager and compiled as one graph, in turn within each round,
224 px, bfloat16 autocast, channels last; ours over plain is to stay within the limit beside it. The batch is halved
until all sides fit, and a side that fails is named with its reason, beside the times of the others. kernels: every pass
of the fused tail at the block shapes of ResNet-50, batch 256, bfloat16, its largest error against float64 beside plain
PyTorch's, its time, and the share of the bandwidth that a copy on the device reaches in the same run. sweep: 25 short
trials against plain Lightning processes. batched: the steps of such trials as one program. capture: what looking at
excitations adds to inference. long: the errors on a tensor of more than 2³¹ elements.

The parts come in the order of what they are worth. Each runs in a process of its own and is recorded as soon as it is
measured, in place of the one before of the same device: a part that fails, or a run that is killed, costs no other.
With --minutes, a part that is not done by then is stopped, and what was not begun is named. Compiling takes minutes a
net: --cache keeps what was compiled for the next run. `--smoke` goes through all of it at tiny shapes on a CPU, with
Triton's interpreter, and times nothing worth keeping.
"""

from __future__ import annotations

import os
import sys

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import argparse
import contextlib
import datetime
import multiprocessing
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from gpu_nets import LIMITS, NETS, net_table
from gpu_passes import LAYOUTS, SHAPES, kernel_table, long_table
from measure import with_section

from se_lab.store import write_text_whole
from se_lab.units.fused import kernels

HERE = Path(__file__).parent
PARTS = ("training", "kernels", "inference", "sweep", "batched", "capture", "long")
LEAST_SECONDS = 20
"""With less time than this left no part is begun."""


def main() -> int:
    options = parse()
    if options.cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(options.cache / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(options.cache / "triton")
    if not options.smoke and not alone(_ready):
        print("status: skipped; gpu.py needs a GPU with CUDA and Triton (--smoke goes through it without)")
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    well, parts = True, list(plan(options))
    for number, (name, part, *arguments) in enumerate(parts):
        began = time.monotonic()
        if deadline - began < LEAST_SECONDS:
            print(f"no time left for: {'; '.join(one for one, *_ in parts[number:])}")
            break
        try:
            device, section, passed = alone(_measured, part, name, options, *arguments, seconds=deadline - began)
        except Exception:  # whatever became of it, the others are measured
            traceback.print_exc()
            print(f"{name}: FAILED after {time.monotonic() - began:.0f} s\n", flush=True)
            well = False
            continue
        print(f"{section}\n\n{name}: {time.monotonic() - began:.0f} s{'' if passed else ', FAILED'}\n", flush=True)
        well = well and passed
        if options.results:
            record(options.results, f"gpu: {device}: {name}", section)
    return 0 if well else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="Steps a round.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Stop by then, whatever is left.")
    parser.add_argument("--cache", type=Path, help="Folder that keeps what was compiled.")
    parser.add_argument("--backend", default="inductor", help="Of torch.compile.")
    parser.add_argument("--results", type=Path, help="Markdown file to record each part in.")
    parser.add_argument("--commit", help="What to record as the commit, where there is no git.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    options.size, options.device, options.shapes = 224, "cuda", SHAPES
    options.nets = {net: NETS[net] for net in options.nets}
    if options.smoke:
        options.size, options.device, options.shapes = 32, "cpu", [(24, 9), (70, 3)]
        options.nets, options.batch, options.rounds, options.steps = {"resnet18": "seresnet18"}, 2, 1, 1
    return options


def plan(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Yield name, function and arguments of each part, those first that are worth most."""
    first, *others = options.nets.items()
    for part in options.parts:
        if part in LIMITS:
            yield f"{first[0]}, {part}", net_table, part, *first
        elif part == "kernels":
            yield from ((f"kernels, {layout}", kernel_table, layout) for layout in LAYOUTS)
        elif part == "sweep":
            yield "25 short trials", sweep_table
        elif part == "batched":
            yield "trials as one program", batched_table
        elif part == "capture":
            yield "capture of excitations", capture_table, first[1]
    for net in others:
        yield from ((f"{net[0]}, {kind}", net_table, kind, *net) for kind in LIMITS if kind in options.parts)
    if "long" in options.parts:
        yield from ((f"more than 2³¹ elements, {layout}", long_table, layout) for layout in LAYOUTS)


def alone(function: Callable[..., Any], *arguments: Any, seconds: float = float("inf")) -> Any:
    """Return what a function returns in a process of its own, which leaves nothing on the GPU and takes none along.

    The process is a fork, so that nothing is imported again: this one must not touch the GPU. After so many seconds it
    is killed with all that it started.

    Raises:
        RuntimeError: The function raised, its process died, or its time was up.
    """
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(None if seconds == float("inf") else seconds):
            raise RuntimeError("its time was up")
        fine, answer = ours.recv()
    except EOFError:
        raise RuntimeError("its process died") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and so has all that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if not fine:
        raise RuntimeError(answer)
    return answer


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)
    try:
        answer = True, function(*arguments)
    except Exception:
        answer = False, traceback.format_exc()
    pipe.send(answer)


def _ready() -> bool:
    return torch.cuda.is_available() and kernels.available()


def _measured(
    part: Callable[..., tuple[str, bool]], name: str, options: argparse.Namespace, *arguments: Any
) -> tuple[str, str, bool]:
    """Return the device's name, the part as a section, and whether it passed what it checks."""
    cuda = options.device == "cuda"
    torch.backends.cudnn.benchmark = True
    if not cuda:
        torch.set_num_threads(1)
    text, passed = part(options, *arguments)
    device = torch.cuda.get_device_name() if cuda else "smoke run on a CPU"
    return device, f"## {device}: {name}\n\n{circumstances(options.commit, cuda)}\n\n{text}", passed


def circumstances(commit: str | None, cuda: bool) -> str:
    import triton

    versions = f"torch {torch.__version__}, Triton {triton.__version__}, timm {timm.__version__}"
    if cuda:
        versions += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    if commit is None:
        try:
            command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
            commit = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            commit = "not known"
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return f"{today} · commit {commit} · Python {sys.version.split()[0]}, {versions}"


def record(path: Path, name: str, section: str) -> None:
    """Put a section into a Markdown file, in place of the one of its name there, or at the end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Measured\n"
    write_text_whole(path, with_section(text, name, section, len(text)))


def sweep_table(options: argparse.Namespace) -> tuple[str, bool]:
    """Run benchmarks/sweep.py, whose table has its own aim."""
    size = {"images": 45_000, "val_images": 5_000, "epochs": 4, "precision": "bf16", "plain_trials": 2}
    if options.smoke:
        size = {"images": 128, "val_images": 20, "epochs": 1, "seeds": 1, "plain_trials": 1}
    flags = [f"--{name}={value}" for name, value in {"device": options.device, **size}.items()]
    return _script("sweep.py", "--no_agreement", *flags), True


def batched_table(options: argparse.Namespace) -> tuple[str, bool]:
    """Run benchmarks/batched.py, which fails where the losses are not those of the trials alone."""
    size = {"steps": 16, "seeds": 2, "rounds": 5}
    if options.smoke:
        size = {"batch": 2, "size": 8, "steps": 1, "seeds": 1, "rounds": 1}
    flags = [f"--{name}={value}" for name, value in {"device": options.device, **size}.items()]
    return _script("batched.py", *flags, *(["--no_compile"] if options.backend != "inductor" else [])), True


def capture_table(options: argparse.Namespace, backbone: str) -> tuple[str, bool]:
    """Run benchmarks/excitations.py, whose table has its own limit."""
    same = {name: getattr(options, name) for name in ("batch", "size", "rounds", "device")}
    flags = [f"--{name}={value}" for name, value in {"backbone": backbone, **same}.items()]
    return _script("excitations.py", "--amp", *flags), True


def _script(name: str, *flags: str) -> str:
    command = [sys.executable, str(HERE / name), *flags]
    environment = os.environ.copy()
    environment.pop("TRITON_INTERPRET", None)  # which is for the passes alone; this script trains
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
