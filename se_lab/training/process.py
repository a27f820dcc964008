"""How a process that trains uses the machine."""

from __future__ import annotations

import ctypes
import sys

import torch


def prepare(threads: int) -> None:
    """Let this process compute with so many threads, and keep the memory that it frees."""
    torch.set_num_threads(threads)
    keep_memory()


def keep_memory() -> None:
    """Let the C library keep what is freed for what comes next, where that can be said (glibc).

    Else it gives large blocks back to the system, which clears them page by page when they are asked for again; and a
    step frees and asks for the same maps as the one before. What a process holds at most stays nearly the same.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own kind
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: up to here may be free
