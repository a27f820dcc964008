"""The passes in C++ for CPUs, compiled once per kind of CPU and cached in the user's folder."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from se_lab.store import cache_folder

SOURCE = Path(__file__).with_name("passes.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
TYPES = (torch.float32, torch.bfloat16)

Pointers = ctypes.Array[ctypes.c_void_p]


def native_pass(name: str, dtype: torch.dtype) -> Callable[..., Any] | None:
    """Return a pass of passes.py in C++, or None for unsupported dtypes or without a compiler.

    It takes maps of this dtype in one layout, NCHW or channels_last, and float32 coefficients, (N, C); its sums are
    float64.
    """
    return PASSES[name] if dtype in TYPES and library() is not None else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled passes, or None if there is no suitable C++ compiler."""
    command = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    compiler = [*shlex.split(command or ""), *FLAGS]
    try:
        # the macros identify the compiler and the CPU: machines of several kinds may share a home folder
        macros = subprocess.run([*compiler, "-dM", "-E", "-x", "c++", os.devnull], check=True, capture_output=True)
        key = hashlib.sha256(b"\0".join([macros.stdout, SOURCE.read_bytes(), " ".join(FLAGS).encode()]))
        with _folder() as folder:
            path = folder / f"passes-{key.hexdigest()[:16]}.so"
            if not _is_ours(path):
                with tempfile.TemporaryDirectory(dir=folder) as build_folder:  # several processes may compile at once
                    output = Path(build_folder, path.name)
                    subprocess.run([*compiler, "-o", output, SOURCE], check=True, capture_output=True)
                    output.replace(path)
            return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield the user's cache folder, or a temporary folder if the cache is not writable."""
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours(folder):
                raise PermissionError(f"others can write to {folder}")
            stack.enter_context(tempfile.TemporaryFile(dir=folder))
        except (OSError, RuntimeError):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield folder


def _is_ours(path: Path) -> bool:
    """Return whether a path exists, is not a link, and only this user can write or replace it.

    Folders above the user's home are trusted, as by sshd.
    """
    folders = [*path.parents, *path.resolve().parents]
    above_home = Path(os.path.expanduser("~")).parents  # noqa: PTH111  # Path.home() raises an error without a home
    for entry in (path, *(folder for folder in folders if folder not in above_home)):
        try:
            status = entry.lstat()
        except FileNotFoundError:
            return False
        is_link = stat.S_ISLNK(status.st_mode)
        writable = not is_link and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if status.st_uid not in (os.geteuid(), 0) or (entry == path and (is_link or writable)):
            return False
        if writable and not status.st_mode & stat.S_ISVTX:  # with the sticky bit, as in /tmp, only owners can rename
            return False
    return True


def _call(
    name: str, x: Tensor, maps: Sequence[Tensor | None], by: Sequence[Tensor] = (), sums: int = 0
) -> list[Tensor]:
    """Run a pass over maps with the shape of x, outputs last; return its sums."""
    outputs = [x.new_empty(x.shape[:2], dtype=torch.float64) for _ in range(sums)]
    # a reference to the contiguous copies, which must live until the call returns
    by = [coefficient.contiguous() for coefficient in by]
    function = getattr(library(), f"se_lab_{name}")
    last = not x.is_contiguous()
    shape = [ctypes.c_long(size) for size in x.shape]
    pointers = (_pointers(maps), _pointers(by), _pointers(outputs))
    function(x.dtype == torch.float32, *shape, last, torch.get_num_threads(), *pointers)
    return outputs


def _pointers(tensors: Sequence[Tensor | None]) -> Pointers:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = _call("moments", x, [x], sums=2)
    return mean, variance


def _mean(x: Tensor) -> Tensor:
    return _call("mean", x, [x], sums=1)[0]


def _apply(x: Tensor, shortcut: Tensor | None, activation: str, in_place: bool, *by: Tensor) -> Tensor:
    out = x if in_place else torch.empty_like(x)
    _call("apply_relu" if activation == "relu" else "apply", x, [x, shortcut, out], by)
    return out


def _backward_moments(
    x: Tensor, grad: Tensor, out: Tensor | None, centre: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    if activation == "relu":
        g = torch.empty_like(x)
        sums = _call("backward_moments_relu", x, [grad, out, x, g], [centre], sums=2)
    else:
        g, sums = grad, _call("backward_moments", x, [grad, x], [centre], sums=2)
    return g, sums[0], sums[1]


def _backward_input(x: Tensor, g: Tensor, centre: Tensor, p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    _call("backward_input", x, [g, x, dx], [centre, p, q, r])
    return dx


def _activated_moments(x: Tensor, *by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, active, centred = _call("activated_moments", x, [x], by, sums=3)
    return u, active, centred


def _gate_activated(x: Tensor, *by: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _call("gate_activated", x, [x, out], by)
    return out


def _backward_gate_moments(x: Tensor, grad: Tensor, *by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gate, active, centred = _call("backward_gate_moments", x, [grad, x], by, sums=3)
    return gate, active, centred


def _backward_gate_input(x: Tensor, grad: Tensor, *by: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    _call("backward_gate_input", x, [grad, x, dx], by)
    return dx


PASSES: dict[str, Callable[..., Any]] = {
    "moments": _moments,
    "mean": _mean,
    "apply": _apply,
    "backward_moments": _backward_moments,
    "backward_input": _backward_input,
    "activated_moments": _activated_moments,
    "gate_activated": _gate_activated,
    "backward_gate_moments": _backward_gate_moments,
    "backward_gate_input": _backward_gate_input,
}
