"""Ranks, the processes that train one trial, and the values that they exchange."""

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
"""How long a rank waits for a rank that does not respond."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """The rank of this process in its trial."""

    number: int = 0
    local: int = 0
    """The number of the rank on its node, and of its GPU."""
    ranks: int = 1
    """The number of ranks."""
    slurm: bool = False
    """Whether srun has started the ranks."""


def find_rank(train: TrainSpec) -> Rank | None:
    """Return the rank of this process, or None if the trial's ranks have yet to be started.

    Raises:
        SpecError: if the number of processes that srun or torchrun started is not the number of ranks.
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
            f"{'srun' if rank.slurm else 'torchrun'} started {rank.ranks} processes; train.devices={train.devices} and "
            f"train.nodes={train.nodes} need {train.ranks}"
        )
    return rank


@contextlib.contextmanager
def join_ranks(rank: Rank, device: str) -> Iterator[None]:
    """Connect this process to the other ranks in a context: by gloo, and by NCCL on GPUs."""
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
    dist.destroy_process_group()  # not after an error: it would wait for ranks that may have ended


def rank_options(rank: Rank, train: TrainSpec) -> dict[str, Any]:
    """Return the options for Lightning's Trainer that concern ranks."""
    if rank.ranks == 1:  # explicit, since Lightning would treat a Slurm batch job as a rank, and requeue it
        return {"devices": 1, "plugins": [LightningEnvironment()]}
    # otherwise Lightning would use all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(train.devices))  # Lightning requires it under srun
    environment = SLURMEnvironment(auto_requeue=False) if rank.slurm else TorchElasticEnvironment()
    # the buffers of rank 0 are broadcast before each evaluation, not at every step
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=TIMEOUT)
    return {
        "devices": train.devices,
        "num_nodes": train.nodes,
        "strategy": strategy,
        "plugins": [environment],
        "use_distributed_sampler": False,
    }


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over ranks of a tensor, whose shape must be the same on all ranks."""
    if not dist.is_initialized():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """Return the objects of all ranks, by rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """Return the object of rank 0 on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def share_buffers(net: nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks; without SyncBN, each rank has its own statistics."""
    if dist.is_initialized():
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)


class Agreement:
    """The maximum over ranks of an integer, exchanged after each step and known one step later.

    The exchange overlaps with the next step, and uses gloo, so that it does not wait for a GPU.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def ask(self, value: int) -> int:
        """Send a value; return the maximum of the previous step (with one rank, the value itself)."""
        if not dist.is_initialized():
            return value
        answer = 0
        if self._pending is not None:
            tensor, work = self._pending
            work.wait()
            answer = int(tensor)
        tensor = torch.tensor(value)
        self._pending = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)
        return answer


def _name_meeting_point() -> None:
    """Set MASTER_ADDR to the first node of an srun, and MASTER_PORT to a port for its job step."""
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15000 + (job * 7 + step) % 15000))
