"""Work that must leave no trace in a process that forks workers: no threads of autograd's, no CUDA context."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


def in_a_child(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function gives in a forked process.

    Raises:
        Exception: what the function raises.
        RuntimeError: where the process dies instead.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(writer, function, arguments))
    process.start()
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


def _answer(writer: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # the parent tells of Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        writer.send((None, function(*arguments)))
    except Exception as error:
        writer.send((error, None))
