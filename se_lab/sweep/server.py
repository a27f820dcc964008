"""The fork server, a process with all imports done, from which trials fork in milliseconds.

This is the standard library's `forkserver`. Unlike the process that runs the sweep, such as a notebook, the server has
never initialised CUDA or started threads, so its forks can train.
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
"""Signals that the fork server blocks; the processes forked from it unblock them."""

T = TypeVar("T")


def start_server() -> None:
    """Start the fork server if it is not running, without waiting for its imports."""
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
    """Return a context whose new processes do not rerun the main script."""
    start_server()
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def call_in_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function called in a new process, which may use CUDA and threads.

    Raises:
        Exception: any exception of the function.
        RuntimeError: if the process dies.
    """
    return call_in_processes(1, function, *arguments)[0]


def call_in_processes(count: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Return the results of a function called in `count` processes; see `call_in_process`."""
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
            raise RuntimeError(f"the process exited with status {process.exitcode} and no result")
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent process reports Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    adopt_environment(environment)
    answer: tuple[Exception | None, Any]
    try:
        answer = (None, function(*arguments))
    except Exception as error:
        answer = (error, None)
    with contextlib.suppress(OSError):  # the parent process has ended
        writer.send(answer)


def adopt_environment(environment: dict[str, str]) -> None:
    """Replace the environment variables inherited from the fork server by current ones."""
    os.environ.clear()
    os.environ.update(environment)
