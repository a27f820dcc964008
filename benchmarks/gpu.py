"""Cost of SE on a GPU: `python benchmarks/gpu.py --results benchmarks/RESULTS.md`.

Parts: training and inference of plain nets, timm's SE nets and SE-Lab's, eager and compiled as one graph, in turn, at
224 px with bfloat16 autocast and channels last, with limits for the ratio of SE-Lab's to plain; the batch is halved
until all fit, and failures are reported with their reason. kernels: each pass of the fused tail at the shapes of
ResNet-50 with batch 256 in bfloat16: the largest error against float64 (also of plain PyTorch), the time, and the
bandwidth relative to a copy. sweep: 25 short trials compared with plain Lightning processes. batched: such trials as
one program. capture: the cost of capturing excitations. long: errors on a tensor with more than 2³¹ elements.

Parts are ordered by importance. Each runs in a separate process, and its result replaces the previous one for the same
device at once, so that a failure does not affect other parts. With --minutes, the current part is stopped at the limit,
and the remaining parts are listed. --cache keeps compiled kernels for the next run. `--smoke` runs all parts with tiny
shapes on a CPU, with Triton's interpreter, as a test.
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
"""Remaining time below which no part is started."""


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
        except Exception:  # other parts are not affected
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
    parser.add_argument("--steps", type=int, default=4, help="Steps per round.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Time limit in minutes.")
    parser.add_argument("--cache", type=Path, help="Folder for compiled kernels.")
    parser.add_argument("--backend", default="inductor", help="Backend of torch.compile.")
    parser.add_argument("--results", type=Path, help="Markdown file for the results.")
    parser.add_argument("--commit", help="Commit to record, if git is not available.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    options.size, options.device, options.shapes = 224, "cuda", SHAPES
    options.nets = {net: NETS[net] for net in options.nets}
    if options.smoke:
        options.size, options.device, options.shapes = 32, "cpu", [(24, 9), (70, 3)]
        options.nets, options.batch, options.rounds, options.steps = {"resnet18": "seresnet18"}, 2, 1, 1
    return options


def plan(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Yield name, function and arguments of each part, the most important first."""
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
    """Return the result of a function called in a forked process, killed after `seconds`.

    The calling process must not use the GPU.

    Raises:
        RuntimeError: if the function raises, the process dies, or the time is over.
    """
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(None if seconds == float("inf") else seconds):
            raise RuntimeError("the time limit was reached")
        fine, answer = ours.recv()
    except EOFError:
        raise RuntimeError("the process died") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # all processes of the group have ended
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
    """Return the name of the device, the section of a part, and whether its checks passed."""
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
    """Write a section to a Markdown file, replacing the section with the same name."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Measured\n"
    write_text_whole(path, with_section(text, name, section, len(text)))


def sweep_table(options: argparse.Namespace) -> tuple[str, bool]:
    """Run benchmarks/sweep.py, and return its table."""
    size = {"images": 45_000, "val_images": 5_000, "epochs": 4, "precision": "bf16", "plain_trials": 2}
    if options.smoke:
        size = {"images": 128, "val_images": 20, "epochs": 1, "seeds": 1, "plain_trials": 1}
    flags = [f"--{name}={value}" for name, value in {"device": options.device, **size}.items()]
    return _script("sweep.py", "--no_agreement", *flags), True


def batched_table(options: argparse.Namespace) -> tuple[str, bool]:
    """Run benchmarks/batched.py, and return its table; raise if losses differ."""
    size = {"steps": 16, "seeds": 2, "rounds": 5}
    if options.smoke:
        size = {"batch": 2, "size": 8, "steps": 1, "seeds": 1, "rounds": 1}
    flags = [f"--{name}={value}" for name, value in {"device": options.device, **size}.items()]
    return _script("batched.py", *flags, *(["--no_compile"] if options.backend != "inductor" else [])), True


def capture_table(options: argparse.Namespace, backbone: str) -> tuple[str, bool]:
    """Run benchmarks/excitations.py, and return its table."""
    same = {name: getattr(options, name) for name in ("batch", "size", "rounds", "device")}
    flags = [f"--{name}={value}" for name, value in {"backbone": backbone, **same}.items()]
    return _script("excitations.py", "--amp", *flags), True


def _script(name: str, *flags: str) -> str:
    command = [sys.executable, str(HERE / name), *flags]
    environment = os.environ.copy()
    environment.pop("TRITON_INTERPRET", None)  # only for the passes
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
