"""Handle the signals that stop a trial: SIGTERM, SIGUSR1, SIGHUP and SIGINT."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

RESUME_ME = 75
"""The exit status of a trial that was stopped and can be resumed (EX_TEMPFAIL)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""The signals that ask a trial to stop, besides Ctrl-C."""


class InterruptedTrialError(BaseException):
    """The trial was asked to stop and can be resumed; it is not a failure, so not an Exception."""


class Stop:
    """A signal handler that records a request to stop; with `at_once`, it raises immediately."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.asked, self.at_once = False, at_once
        self._owner = os.getpid()

    def __call__(self, signum: int, frame: object) -> None:
        """Handle a signal; in a forked process, ignore it."""
        if os.getpid() != self._owner:
            return
        self.asked = True
        # A second Ctrl-C stops immediately, but not under a W&B agent, since the run must be marked as preempting; the
        # agent kills the trial at the third.
        if signum == signal.SIGINT and not os.environ.get("WANDB_SWEEP_ID"):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.at_once:
            self.at_once = False  # do not interrupt the clean-up
            raise InterruptedTrialError

    def raise_at_once(self) -> None:
        """Raise InterruptedTrialError on a request from now on, and for an earlier one."""
        self.at_once = True
        if self.asked:
            self.at_once = False
            raise InterruptedTrialError


@contextlib.contextmanager
def catch_signals(stop: Stop) -> Iterator[Stop]:
    """Handle the signals by `stop` inside the context."""
    handlers: dict[signal.Signals, Any] = {}
    try:
        for number in (*SIGNALS, signal.SIGINT):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # under nohup, or SIGINT in a worker, which its sweep stops by SIGTERM
            with contextlib.suppress(ValueError):  # not in the main thread, so its owner handles signals
                handlers[number] = signal.signal(number, stop)
        if handlers:
            # deliver signals received during the start
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, signal.SIGINT))
        yield stop
    finally:
        for number, handler in handlers.items():
            if stop.asked and isinstance(handler, Stop):  # an outer context has to stop as well
                handler.asked, handler.at_once = True, False
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit with RESUME_ME on signals inside the context, while there is nothing to save.

    The signals are blocked until `catch_signals` in one of several ranks, since the other ranks would wait for it, and
    under a W&B agent, whose run must be marked as preempting.
    """
    handlers: dict[signal.Signals, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):  # not in the main thread
            handlers[number] = signal.signal(number, lambda *_: os._exit(RESUME_ME))
    is_distributed = any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    is_blocked = bool(handlers) and (is_distributed or bool(os.environ.get("WANDB_SWEEP_ID")))
    if is_blocked:
        handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers if is_blocked else ())
    try:
        yield
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)  # discard a signal that is still blocked
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
