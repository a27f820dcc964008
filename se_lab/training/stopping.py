"""How a trial is told to stop: SIGTERM, SIGUSR1 (a scheduler's warning), SIGHUP (the end of its terminal), Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

RESUME_ME = 75
"""The exit status of a trial that was told to stop and can go on (EX_TEMPFAIL)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What tells a trial to stop, beside Ctrl-C."""


class InterruptedTrialError(BaseException):
    """The trial was told to stop, has saved its state, and can be resumed. Not an Exception: no failure to record."""


class Stop:
    """Whether this process was told to stop. `at_once`: nothing is there to save yet, and the signal itself ends it."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.asked, self.at_once = False, at_once
        self._owner = os.getpid()

    def __call__(self, signum: int, frame: object) -> None:
        """Take a signal; a forked loader process leaves it to the one that it works for."""
        if os.getpid() != self._owner:
            return
        self.asked = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one does not wait
        if self.at_once:
            raise InterruptedTrialError


@contextlib.contextmanager
def heard(stop: Stop) -> Iterator[Stop]:
    """Let the signals reach `stop` for as long as this lasts."""
    before: dict[signal.Signals, Any] = {}
    try:
        for number in (*SIGNALS, signal.SIGINT):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup; or a worker of a sweep, which hears of it and asks by SIGTERM
            with contextlib.suppress(ValueError):  # not the main thread: whoever runs it there handles signals
                before[number] = signal.signal(number, stop)
        if before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # what came while this process started comes now
        yield stop
    finally:
        for number, handler in before.items():
            if stop.asked and isinstance(handler, Stop):  # whoever waits for this one has been told as well, by now
                handler.asked, handler.at_once = True, False
            signal.signal(number, handler)


@contextlib.contextmanager
def left_when_told() -> Iterator[None]:
    """Let the signals end this process at once with RESUME_ME, where it has nothing to lose: while it starts.

    One of several ranks takes them when they are `heard`: if it left alone, the others would wait for it.
    """
    before: dict[signal.Signals, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):  # not the main thread
            before[number] = signal.signal(number, lambda *_: os._exit(RESUME_ME))
    several = any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS if several else ())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
