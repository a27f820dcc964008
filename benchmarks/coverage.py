"""Models of timm that support SE units: `python benchmarks/coverage.py`, six minutes.

Every convolutional model of timm gets units and runs on the meta device at its own image size, which checks the
channels of all units. A small net of each family is also run on the CPU: a training step must give every SE unit a
gradient, and with all gates set to 1 the net must be bit-identical to the plain one in double precision.

The list of models is in convolutional.txt; `--freeze` rewrites it. A model is convolutional if pixels are combined only
by convolutions and pooling, that is, if no class name of a module contains attention, self-attention, a state space, a
recurrence or an MLP over tokens (RULE). Channel attention, split attention and selective kernels are allowed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import timm
import torch
from measure import table
from timm.models._registry import _model_to_module
from torch import nn

from se_lab.spec import SESpec, SpecError
from se_lab.units.insertion import insert_se
from se_lab.units.squeeze_excite import SqueezeExcite

LIST = Path(__file__).with_name("convolutional.txt")
RULE = re.compile(r"Attention|Attn|LambdaLayer|SHSA|SHMA|MHSA|GPSA|LiteMLA|HSMSSD|LSTM|MlpMixer|ParallelScalingBlock")
CONVOLUTIONS = ("SplitAttn", "SelectiveKernelAttn")


def is_convolutional(net: nn.Module) -> bool:
    """Return whether a net is convolutional."""
    names = {type(module).__name__ for module in net.modules()} - set(CONVOLUTIONS)
    return not any(RULE.search(name) for name in names)


def build(name: str, device: str) -> nn.Module:
    with torch.device(device):
        net: nn.Module = timm.create_model(name)
    return net.eval()


def freeze() -> None:
    names = [name for name in timm.list_models() if is_convolutional(build(name, "meta"))]
    head = f"# timm {timm.__version__}, {len(names)} of {len(timm.list_models())} models"
    LIST.write_text("\n".join([head, *names, ""]))
    print(f"{len(names)} convolutional models in {LIST}")


def frozen() -> list[str]:
    return [line for line in LIST.read_text().splitlines() if not line.startswith("#")]


def fits(name: str, se: SESpec, existing_se: str) -> tuple[str, int]:
    """Insert units and run the net on the meta device; return an error or "", and parameters."""
    net = build(name, "meta")
    params = sum(p.numel() for p in net.parameters())
    size = net.default_cfg["input_size"]  # type: ignore[index,union-attr]
    try:
        insert_se(net, se, existing_se)
        net(torch.empty(1, *size, device="meta"))  # type: ignore[operator]
    except SpecError as error:
        return str(error).partition(";")[0], params
    except Exception as error:  # any error is reported with the model's name
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}", params
    return "", params


class One(nn.Module):
    """A gate of 1."""

    def forward(self, gate: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(gate)


def works(name: str, existing_se: str) -> str:
    """Train and compare a small net on the CPU; return an error or ""."""
    torch.manual_seed(0)
    plain = timm.create_model(name)
    torch.manual_seed(0)
    patched = timm.create_model(name)
    sites = insert_se(patched, SESpec(), existing_se)
    side = 96
    images = torch.randn(2, 3, side, side)
    patched.train()(images).square().mean().backward()
    for site in sites:
        gradient = patched.get_submodule(site.path).reduce.weight.grad  # type: ignore[union-attr]
        if gradient is None or not torch.isfinite(gradient).all():
            return f"{site.name} gets no gradient"
    missing, unexpected = patched.load_state_dict(plain.state_dict(), strict=False)
    if unexpected or any(not key.startswith(tuple(site.path for site in sites)) for key in missing):
        return "state-dict keys differ from timm's"
    for unit in (module for module in patched.modules() if isinstance(module, SqueezeExcite)):
        unit.gate = One()
    with torch.no_grad():
        same = torch.equal(patched.double().eval()(images.double()), plain.double().eval()(images.double()))
    return "" if same else "with gates of 1 it differs from the plain net"


def shares(results: Iterable[tuple[str, str]]) -> str:
    """Return a table of coverage by family, and a list of models that are not covered."""
    results = list(results)
    total, good = Counter[str](), Counter[str]()
    for name, problem in results:
        total[_model_to_module[name]] += 1
        good[_model_to_module[name]] += not problem
    rows = [[name, good[name], total[name], f"{good[name] / total[name]:.0%}"] for name in sorted(total)]
    covered = sum(good.values())
    rows.append(["all", covered, len(results), f"{covered / len(results):.1%}"])
    missing = [f"- {name}: {problem}" for name, problem in results if problem] or ["none"]
    return "\n".join([table(["family", "covered", "of", "share"], rows), "", "Not covered:", "", *missing])


def smallest(params: Mapping[str, int]) -> list[str]:
    """Return the model with the fewest parameters of each family."""
    found: dict[str, str] = {}
    for name in sorted(params, key=lambda name: params[name]):
        if not name.startswith("test_"):
            found.setdefault(_model_to_module[name], name)
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--freeze", action="store_true", help="Rewrite the list of convolutional models.")
    parser.add_argument("--insertion", default="standard", help="Insertion of the units.")
    parser.add_argument("--no_numbers", action="store_true", help="Skip the check of a net of each family.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.freeze:
        freeze()
        return 0
    start = time.perf_counter()
    found = {name: fits(name, SESpec(insertion=options.insertion), "keep") for name in frozen()}
    results = [(name, problem) for name, (problem, _) in found.items()]
    print(f"timm {timm.__version__}, insertion {options.insertion}\n\n{shares(results)}", flush=True)
    wrong = []
    if not options.no_numbers:
        checked = []
        for name in smallest({name: params for name, (problem, params) in found.items() if not problem}):
            problem = works(name, "keep")
            wrong += [name] if problem else []
            checked.append([_model_to_module[name], name, problem or "ok"])
        print(f"\nA small net of each family, with numbers:\n\n{table(['family', 'net', 'result'], checked)}")
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
