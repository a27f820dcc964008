"""Processes beside one that forks workers, and must stay able to: no threads of autograd's, no CUDA context."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from se_lab.training.stopping import RESUME_ME

PROBE_SECONDS = 10.0
"""A forked process that has not trained a moment by then hangs in a lock that only this one's threads could open."""

ASKED_CUDA = 2
"""The status of a forked process that CUDA would refuse."""

T = TypeVar("T")


def in_a_child(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function gives in a forked process.

    Raises:
        Exception: what the function raises.
        RuntimeError: where the process dies instead.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a Ctrl-C is lost on a process half forked
    try:
        process = context.Process(target=_answer, args=(writer, function, arguments, mask))
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    writer.close()
    try:
        error, answer = reader.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with status {process.exitcode} and no answer") from None
    finally:
        reader.close()
    process.join()
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


def _answer(writer: Connection, function: Callable[..., Any], arguments: Sequence[Any], mask: set[int]) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # the parent tells of Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        writer.send((None, function(*arguments)))
    except Exception as error:
        writer.send((error, None))


def see_children_end() -> None:
    """Let this process learn how those end that it starts, where whoever started it has the system forget them."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def can_fork(threads: int) -> bool:
    """Tell whether a forked process could train with so many threads: seldom after this one has trained itself.

    Nor could it on a GPU after this one has as much as asked CUDA whether there is one.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    process = multiprocessing.get_context("fork").Process(target=_train_a_moment, args=(threads,))
    process.start()
    process.join(PROBE_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode == ASKED_CUDA:
        return not torch.cuda.is_available()
    return process.exitcode == 0


def _train_a_moment(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells of Ctrl-C
    with contextlib.suppress(RuntimeError):
        torch.set_num_threads(threads)
        weights = torch.ones(1 << 18, requires_grad=True)  # enough for all threads to get a share
        torch.autograd.backward((2 * weights).sum())
        os._exit(ASKED_CUDA if torch.cuda._is_in_bad_fork() else 0)
    os._exit(1)


def end_with(parent: int) -> None:
    """Let this process end with the one that started it, however that ends: what it runs must not go on unseen."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(RESUME_ME)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Yield what SIGINT, SIGTERM and the end of the terminal set for as long as this lasts."""
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # ignored under nohup
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        with contextlib.suppress(ValueError):  # not the main thread
            before[number] = signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
