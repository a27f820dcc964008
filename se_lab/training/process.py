"""How a process that trains uses the machine."""

from __future__ import annotations

import ctypes
import sys

import torch


def prepare(threads: int) -> None:
    """Set the number of CPU threads of this process, and let it keep freed memory."""
    torch.set_num_threads(threads)
    keep_memory()


def keep_memory() -> None:
    """Let the C library keep freed memory for reuse, where it has that option (glibc).

    By default it returns large blocks to the system, which clears them page by page when they are allocated again; and
    each step frees and allocates the same maps as the one before. Peak memory stays nearly the same.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: map no block separately
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes that may stay free
