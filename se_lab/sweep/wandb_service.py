"""One service process of W&B's for all trials of a sweep: each would start its own, and wait seconds for it."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

SERVICE = "WANDB_SERVICE"
"""W&B's own variable: whoever finds it connects to that service instead of starting one."""
START_SECONDS = 60.0


@contextlib.contextmanager
def shared_service(wanted: bool) -> Iterator[None]:
    """Keep a service of W&B's, started in a process of its own, for the processes that are forked in the meantime.

    Where it does not come up, each trial starts its own, as it would without.
    """
    if not wanted or os.environ.get("WANDB_MODE") == "disabled" or os.environ.get(SERVICE):
        yield
        return
    # What a run imports when it begins is imported here, once for all workers; threads belong to the other process.
    for module in ("lightning.pytorch.loggers", "wandb", "wandb.sdk.launch"):
        with contextlib.suppress(ImportError):  # the last is not part of wandb's public interface
            importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, ours), daemon=True)
    process.start()
    theirs.close()
    try:
        with contextlib.suppress(EOFError, OSError):
            if ours.poll(START_SECONDS):
                os.environ[SERVICE] = ours.recv()
        yield
    finally:
        os.environ.pop(SERVICE, None)
        with contextlib.suppress(OSError):
            ours.send("end")
        process.join(timeout=5)
        process.terminate()


def finish_run(exit_code: int) -> None:
    """End the W&B run of this process, if it has one, so that its files are whole before the process is gone."""
    client = sys.modules.get("wandb")
    if client is not None and getattr(client, "run", None) is not None:
        with contextlib.suppress(Exception):
            client.finish(exit_code=exit_code)


def _serve(pipe: Connection, other_end: Connection) -> None:
    import wandb

    other_end.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the trials that are told to stop still log
    wandb.setup(settings=wandb.Settings(silent=True))
    with contextlib.suppress(EOFError, OSError):
        pipe.send(os.environ[SERVICE])
        parent = os.getppid()
        while not pipe.poll(1.0) and os.getppid() == parent:
            pass
    wandb.teardown()
    os._exit(0)
