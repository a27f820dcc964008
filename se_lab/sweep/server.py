"""The fork server: one process that has everything imported, from which trials are forked in milliseconds.

It is the standard library's `forkserver`. The process that runs the sweep may have trained, initialised
CUDA or started threads, as notebooks do; the server has not, so its forks can train.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = "se_lab.sweep.preload"
BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that the fork server blocks from its start; the processes that are forked from it unblock them."""

T = TypeVar("T")


def start_server() -> None:
    """Start the fork server, if it is not running; return before it has imported everything."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    old_path = os.environ.get("PYTHONPATH")
    forkserver.set_forkserver_preload([PRELOADED])
    os.environ["PYTHONPATH"] = path  # the server must find se_lab where this process does
    resource_tracker.ensure_running()  # started first, since it unblocks SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # a new process inherits it
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.pop("PYTHONPATH")
        if old_path is not None:
            os.environ["PYTHONPATH"] = old_path


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Start the fork server, and keep the processes that are started within from rerunning this one's script.

    Without this, each would run an unguarded script (`if __name__ == "__main__"`) again.
    """
    start_server()
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def in_a_child(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own, where it may use CUDA, threads and memory, and return its result.

    Raises:
        Exception: what the function raises.
        RuntimeError: if the process dies.
    """
    return in_children(1, function, *arguments)[0]


def in_children(count: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Call a function in several processes at once, and return their results; see `in_a_child`."""
    with forking():
        children = [_start(function, arguments) for _ in range(count)]
    answers = []
    for process, reader in children:
        with reader:
            try:
                error, answer = reader.recv()
            except EOFError:
                error, answer = None, None
        process.join()
        if error is not None:
            raise error
        if process.exitcode != 0:
            raise RuntimeError(f"the process ended with status {process.exitcode} and no answer")
        answers.append(answer)
    return answers


def _start(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Connection]:
    reader, writer = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(writer, function, arguments, dict(os.environ)))
    process.start()
    writer.close()
    return process, reader


def _answer(
    writer: Connection, function: Callable[..., Any], arguments: Sequence[Any], environment: dict[str, str]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the process that asked reports Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    adopt_environment(environment)
    answer: tuple[Exception | None, Any]
    try:
        answer = (None, function(*arguments))
    except Exception as error:
        answer = (error, None)
    with contextlib.suppress(OSError):  # nobody waits any more
        writer.send(answer)


def adopt_environment(environment: dict[str, str]) -> None:
    """Replace this process's environment, which dates from the server's start, with the sweep's current one."""
    os.environ.clear()
    os.environ.update(environment)
