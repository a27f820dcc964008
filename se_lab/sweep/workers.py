"""Choose the number of parallel trials that maximises throughput on this machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from se_lab.data import DataShape, data_shape
from se_lab.spec import ExecSpec, RunSpec
from se_lab.sweep.server import call_in_process, call_in_processes
from se_lab.training.rehearse import rehearse
from se_lab.units.model import create_model

GAIN = 1.1
"""Factor by which doubling the number of parallel trials must raise the total throughput."""
SHARE = 0.85
"""Fraction of the free memory to use; the rest is a reserve."""
REHEARSAL_SECONDS = 2.0
WARM_UP = 3
"""Number of steps before the timed ones."""
CONTEXT_BYTES = 600 << 20
"""Memory of a process's CUDA context, in bytes."""


def choose_workers(trials: Sequence[RunSpec], execution: ExecSpec) -> tuple[int, str]:
    """Rehearse the largest trial; return the number of parallel trials and the reason."""
    trial = max(trials, key=_weight)
    cores = max(available_cores() // (execution.threads * trial.train.ranks), 1)
    rehearsal = call_in_process(rehearse, trial, execution)
    on_gpu = rehearsal.device_bytes > 0
    free_bytes = call_in_process(_free_gpu_memory) if on_gpu else _free_memory()
    needed_bytes = rehearsal.device_bytes + CONTEXT_BYTES if on_gpu else rehearsal.host_bytes
    most = min(cores, max(int(SHARE * free_bytes / needed_bytes), 1), len(trials))
    limits = f"at most {cores} by cores, {needed_bytes / 2**30:.1f} GiB each of {free_bytes / 2**30:.0f} GiB free"
    if not on_gpu or trial.train.ranks > 1:
        return (1 if on_gpu else most), limits
    data = data_shape(trial.data, root=execution.data_root)
    workers, speed = 1, _joint_throughput(trial, data, 1)
    tries = [f"1 trains {speed:,.0f} images/s"]
    while 2 * workers <= most:
        joint_speed = _joint_throughput(trial, data, 2 * workers)
        tries.append(f"{2 * workers} together {joint_speed:,.0f}")
        if joint_speed < GAIN * speed:
            break
        workers, speed = 2 * workers, joint_speed
    return workers, f"{', '.join(tries)}; {limits}"


def available_cores() -> int:
    """Return the number of cores that this process may use, within the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def speed_on_gpu(trial: RunSpec, data: DataShape) -> float:
    """Return the training throughput of a trial's net in images/s, measured on random images."""
    torch.set_num_threads(1)
    layout = torch.channels_last if trial.train.channels_last else torch.contiguous_format
    net: torch.nn.Module = create_model(trial.model, data.classes, data.shape[0]).cuda().train()
    net.to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9, momentum=0.9)
    images = torch.randn(trial.data.batch_size, *data.shape, device="cuda").to(memory_format=layout)
    labels = torch.randint(data.classes, (trial.data.batch_size,), device="cuda")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trial.train.precision)
    start, steps = time.perf_counter(), -WARM_UP
    while time.perf_counter() - start < REHEARSAL_SECONDS or steps < 1:
        with torch.autocast("cuda", kind, enabled=kind is not None):
            loss = F.cross_entropy(net(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        steps += 1
        if steps == 0:
            start = time.perf_counter()
    return steps * len(images) / (time.perf_counter() - start)


def _joint_throughput(trial: RunSpec, data: DataShape, count: int) -> float:
    """Return the total throughput of `count` parallel trials in images/s."""
    return sum(call_in_processes(count, speed_on_gpu, trial, data))


def _weight(trial: RunSpec) -> float:
    with torch.device("meta"):
        model = create_model(trial.model, 10, 3)
    size = trial.data.image_size or 1
    return float(sum(p.numel() for p in model.parameters())) * trial.data.batch_size * size**2


def _free_gpu_memory() -> int:
    return int(torch.cuda.mem_get_info()[0])


def _free_memory() -> int:
    """Return the free memory of the system or the container, in bytes."""
    free_bytes = 8 << 30  # if neither file can be read
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(
            x for x in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if x.startswith("MemAvailable")
        )
        free_bytes = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free_bytes = min(
            free_bytes, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        )
    return free_bytes
