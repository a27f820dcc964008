"""Set up a training process: its threads and its memory."""

from __future__ import annotations

import ctypes
import sys

import torch


def prepare(threads: int) -> None:
    """Set this process's number of CPU threads, and let it keep freed memory."""
    torch.set_num_threads(threads)
    keep_memory()


def keep_memory() -> None:
    """Let the C library keep freed memory for reuse, if it has that option (glibc).

    Each step frees and allocates maps of the same sizes. By default glibc returns large blocks to the system, which
    clears them page by page at the next allocation. Peak memory stays nearly the same.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: map no block separately
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes that may stay free
