"""The processes that train one trial: their ranks, and the values they exchange."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from se_lab.spec import SpecError, TrainSpec

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for one that does not respond, such as one on a node that is down."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """Which of a trial's processes this one is."""

    number: int = 0
    local: int = 0
    """Its number on its node, and the number of its GPU."""
    ranks: int = 1
    """The number of ranks."""
    slurm: bool = False
    """Whether srun has started them."""


def find_rank(train: TrainSpec) -> Rank | None:
    """Return which rank of a trial this process is, or None if its ranks have still to be started.

    Raises:
        SpecError: if srun or torchrun started another number of processes than the trial has ranks.
    """
    env = os.environ
    if train.ranks == 1 and not ("TORCHELASTIC_RUN_ID" in env and int(env.get("WORLD_SIZE", 1)) > 1):
        return Rank()
    if "RANK" in env and "WORLD_SIZE" in env:
        rank = Rank(int(env["RANK"]), int(env.get("LOCAL_RANK", 0)), int(env["WORLD_SIZE"]))
    elif "SLURM_STEP_ID" in env and (tasks := int(env.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
        rank = Rank(int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), tasks, slurm=True)
    else:
        return None
    if rank.ranks != train.ranks:
        raise SpecError(
            f"train.devices is {train.devices} and train.nodes {train.nodes}: {train.ranks} processes, and "
            f"{'srun' if rank.slurm else 'torchrun'} started {rank.ranks}"
        )
    return rank


@contextlib.contextmanager
def joined(rank: Rank, device: str) -> Iterator[None]:
    """Connect this process to the other ranks: through gloo, and NCCL for tensors on GPUs."""
    if rank.ranks == 1:
        yield
        return
    if rank.slurm:
        _name_meeting_point()
    if device == "cuda":
        torch.cuda.set_device(rank.local)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank.number, world_size=rank.ranks, timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for ranks that may be gone


def rank_options(rank: Rank, train: TrainSpec) -> dict[str, Any]:
    """Return the options of Lightning's Trainer for the ranks."""
    if rank.ranks == 1:  # explicit, since Lightning would take a Slurm batch job for a rank, and requeue it itself
        return {"devices": 1, "plugins": [LightningEnvironment()]}
    # else Lightning uses all cores, whatever the trial's threads are
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(train.devices))  # Lightning insists on it under srun
    environment = SLURMEnvironment(auto_requeue=False) if rank.slurm else TorchElasticEnvironment()
    # the buffers of rank 0 count; they are broadcast before an evaluation, not at every step
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=TIMEOUT)
    return {
        "devices": train.devices,
        "num_nodes": train.nodes,
        "strategy": strategy,
        "plugins": [environment],
        "use_distributed_sampler": False,
    }


def add_up(tensor: Tensor) -> Tensor:
    """Return the sum over ranks of a tensor of one shape on all of them."""
    if not dist.is_initialized():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gathered(mine: T) -> list[T]:
    """Return all ranks' objects, by rank, on every rank."""
    if not dist.is_initialized():
        return [mine]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def shared(of_rank_0: T) -> T:
    """Return rank 0's object on every rank."""
    if not dist.is_initialized():
        return of_rank_0
    box = [of_rank_0]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(net: nn.Module) -> None:
    """Give every rank the buffers of rank 0: without SyncBN each has statistics of its own."""
    if dist.is_initialized():
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)


class Agreement:
    """The ranks' agreement after each step: the largest of their wishes, known one step later.

    The answer travels while the next step is computed. It goes through gloo, so that no GPU has to be waited for.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def ask(self, wish: int) -> int:
        """Send this rank's wish, and return the largest wish of the previous step; with one rank, of this step."""
        if not dist.is_initialized():
            return wish
        answer = 0
        if self._pending is not None:
            tensor, work = self._pending
            work.wait()
            answer = int(tensor)
        tensor = torch.tensor(wish)
        self._pending = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)
        return answer


def _name_meeting_point() -> None:
    """Tell PyTorch where the ranks of an srun meet: on its first node, at a port of this job's step."""
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15000 + (job * 7 + step) % 15000))
