"""Many short trials as one program, and one after another: `python benchmarks/batched.py`.

The trials have one net, several reduction ratios and several seeds. When stacked, every weight has a first axis of
trials; one vmap computes all losses and gradients, and one step of SGD updates all weights. Hidden widths are padded
with zeros to the largest, which changes nothing: a hidden channel with zero weights has output 0 and gradient 0. Before
the timing, losses are compared in float64 with those of separate trials; they may differ by rounding errors, since
matrix products of different sizes are summed in a different order.

One compiled graph is used for all trials, stacked or not; on CUDA it is replayed as a CUDA graph. On a CPU stacking is
slower: five trials of batch 64 took twice as long, and 21 GiB, so run.py omits this script.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from measure import interleave, ratio, table
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from se_lab import ModelSpec, SESpec, create_model

RATIOS = (2, 4, 8, 16, 32)
ROUNDING = 1e-9
"""Tolerance for the relative difference of a loss from that of the separate trial."""
Step = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor], tuple[dict[str, Tensor], Tensor]]


class Trials(NamedTuple):
    """Nets, images (T, steps, N, 3, H, W) and labels (T, steps, N) of T trials."""

    nets: list[nn.Module]
    images: Tensor
    labels: Tensor

    def padded(self) -> Trials:
        """Return the trials with all nets padded to the shape of the first, the widest."""
        return self._replace(nets=[widened(net, self.nets[0]) for net in self.nets])


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    trials = start(options)
    print(f"{len(trials.nets)} trials: reduction ratios {list(RATIOS)} × {options.seeds} seeds of cifar_resnet20, "
          f"batch {options.batch}, {options.size} px, {options.device}\n")  # fmt: skip
    text, well = agreement(options, trials)
    print(text)
    if not options.no_times:
        print(f"\n{times(options, trials)}")
    return 0 if well else 1


def agreement(options: argparse.Namespace, trials: Trials) -> tuple[str, bool]:
    """Return a table of differences from losses of separate trials, and whether all are small."""
    precise = Trials([copy.deepcopy(net).double() for net in trials.nets], trials.images.double(), trials.labels)
    padded = precise.padded()
    own = alone(options, precise, [gradients(net) for net in precise.nets])
    step = gradients(padded.nets[0])
    ways = {
        "hidden widths padded to the widest": alone(options, padded, [step] * len(padded.nets)),
        "all trials in one stack": stacked(options, padded, vmap(step)),
    }
    rows, well = [], True
    for way, losses in ways.items():
        error = ((losses - own).abs() / own).max().item()
        rows.append((way, f"{(losses == own).sum()} of {own.numel()}", f"{error:.1e}", f"{ROUNDING:.0e}"))
        well = well and error <= ROUNDING
    columns = (f"losses of {options.steps} steps, fp64", "equal to the last bit", "largest difference", "allowed")
    return table(columns, rows), well


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="Steps per round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no_compile", action="store_true", help="Time only eager mode.")
    parser.add_argument("--no_times", action="store_true", help="Only compare the losses.")
    return parser.parse_args()


def start(options: argparse.Namespace) -> Trials:
    """Return the nets of all ratios and seeds, with batches that depend on the seed."""
    nets, images, labels = [], [], []
    for reduction in RATIOS:
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            net = create_model(ModelSpec("cifar_resnet20", SESpec(reduction=reduction), fused="off"), 10)
            nets.append(net.to(options.device).train())
            stream = torch.Generator().manual_seed(seed)
            shape = (options.steps, options.batch, 3, options.size, options.size)
            images.append(torch.randn(shape, generator=stream))
            labels.append(torch.randint(10, shape[:2], generator=stream))
    return Trials(nets, torch.stack(images).to(options.device), torch.stack(labels).to(options.device))


def widened(net: nn.Module, widest: nn.Module) -> nn.Module:
    """Return an equivalent of `net` with the shape of the widest net, padded with zeros."""
    wide, own, state = copy.deepcopy(widest), net.state_dict(), {}
    for key, like in widest.state_dict().items():
        state[key] = torch.zeros_like(like)
        state[key][tuple(slice(0, length) for length in own[key].shape)] = own[key]
    wide.load_state_dict(state)
    return wide


def gradients(net: nn.Module) -> Step:
    """Return a function that computes gradients and loss of a batch for given weights of `net`."""

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = functional_call(net, (weights, buffers), (images,))
        return nn.functional.cross_entropy(logits, labels)

    answer: Step = grad_and_value(loss)
    return answer


def alone(options: argparse.Namespace, trials: Trials, steps: list[Step]) -> Tensor:
    """Train one trial after another, and return their losses (T, steps)."""
    losses = []
    for net, step, images, labels in zip(trials.nets, steps, trials.images, trials.labels, strict=True):
        losses.append(train(options, *state_of(net), step, images, labels))
    return torch.stack(losses)


def stacked(options: argparse.Namespace, trials: Trials, step: Step) -> Tensor:
    """Train all trials at once, and return their losses (T, steps)."""
    weights, buffers = stack_module_state(trials.nets)
    images, labels = trials.images.transpose(0, 1), trials.labels.transpose(0, 1)
    return train(options, weights, buffers, step, images, labels).T


def state_of(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {key: weight.detach().clone() for key, weight in net.named_parameters()}
    return weights, {key: buffer.clone() for key, buffer in net.named_buffers()}


def train(
    options: argparse.Namespace,
    weights: dict[str, Tensor],
    buffers: dict[str, Tensor],
    step: Step,
    images: Tensor,
    labels: Tensor,
) -> Tensor:
    """Train on one batch per step, and return the losses, (steps,) or (steps, T)."""
    weights = {key: weight.detach().requires_grad_() for key, weight in weights.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.05, momentum=0.9, weight_decay=1e-4, foreach=True)
    losses = []
    for number in range(options.steps):
        found, loss = step(weights, buffers, images[number], labels[number])
        for key, weight in weights.items():
            weight.grad = found[key]
        optimizer.step()
        losses.append(loss.detach().clone())
    return torch.stack(losses).cpu()  # waits for the device


def times(options: argparse.Namespace, trials: Trials) -> str:
    """Return a table of the time of a step, stacked and one after another."""
    base = "one after another, eager"
    steps = [gradients(net) for net in trials.nets]
    padded = trials.padded()
    one = gradients(padded.nets[0])
    sides: dict[str, Callable[[], object]] = {
        base: lambda: alone(options, trials, steps),
        "stacked, eager": lambda: stacked(options, padded, vmap(one)),
    }
    if not options.no_compile:
        mode = "reduce-overhead" if options.device == "cuda" else "default"  # reduce-overhead uses CUDA graphs
        single = torch.compile(one, mode=mode, fullgraph=True, dynamic=False)
        every = torch.compile(vmap(one), mode=mode, fullgraph=True, dynamic=False)
        sides["one after another, one compiled graph"] = lambda: alone(options, padded, [single] * len(padded.nets))
        sides["stacked, compiled"] = lambda: stacked(options, padded, every)
    found = interleave(sides, options.rounds)
    rows = []
    for side, seconds in found.items():
        each = 1000 * sorted(seconds)[len(seconds) // 2] / options.steps / len(trials.nets)
        rows.append((side, f"{each:.2f}", str(ratio(found, side, base)) if side != base else ""))
    return table(("", "ms a step and trial", f"over {base}"), rows)


if __name__ == "__main__":
    sys.exit(main())
