"""The signals that stop a trial: SIGTERM, SIGUSR1 (a scheduler's warning), SIGHUP (its terminal closes), Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

RESUME_ME = 75
"""The exit status of a trial that was asked to stop and can be resumed (EX_TEMPFAIL)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""The signals that ask a trial to stop, besides Ctrl-C."""


class InterruptedTrialError(BaseException):
    """The trial was asked to stop, has saved its state, and can be resumed. It is no failure, so no Exception."""


class Stop:
    """Whether this process was asked to stop. With `at_once` the signal ends it: there is nothing to save yet."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.asked, self.at_once = False, at_once
        self._owner = os.getpid()

    def __call__(self, signum: int, frame: object) -> None:
        """Handle a signal; a forked loader process leaves it to its parent."""
        if os.getpid() != self._owner:
            return
        self.asked = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one does not wait
        if self.at_once:
            raise InterruptedTrialError


@contextlib.contextmanager
def catch_signals(stop: Stop) -> Iterator[Stop]:
    """Pass the signals to `stop` inside the context, and restore their handlers after it."""
    handlers: dict[signal.Signals, Any] = {}
    try:
        for number in (*SIGNALS, signal.SIGINT):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup; or a worker of a sweep, which the sweep stops by SIGTERM
            with contextlib.suppress(ValueError):  # not the main thread: its owner handles signals
                handlers[number] = signal.signal(number, stop)
        if handlers:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # deliver those that came while this process started
        yield stop
    finally:
        for number, handler in handlers.items():
            if stop.asked and isinstance(handler, Stop):  # an outer context was asked as well
                handler.asked, handler.at_once = True, False
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let the signals end this process at once with RESUME_ME, while it starts and has nothing to save.

    One of several ranks blocks them until `catch_signals`: if only it exited, the others would wait for it.
    """
    handlers: dict[signal.Signals, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):  # not the main thread
            handlers[number] = signal.signal(number, lambda *_: os._exit(RESUME_ME))
    is_distributed = any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS if is_distributed else ())
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
