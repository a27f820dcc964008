"""One W&B service process for all trials of a sweep; otherwise each would start its own, and wait seconds for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

SERVICE = "WANDB_SERVICE"
"""W&B's own variable: a process that finds it connects to that service instead of starting one."""


@contextlib.contextmanager
def shared_service(wanted: bool) -> Iterator[None]:
    """Keep a service of W&B's for the trials that are started in the meantime.

    Where it does not start, each trial starts its own.
    """
    if not wanted or os.environ.get("WANDB_MODE") == "disabled" or os.environ.get(SERVICE):
        yield
        return
    import wandb

    with contextlib.suppress(Exception):  # a tracker never stops a sweep
        wandb.setup(settings=wandb.Settings(silent=True))
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            wandb.teardown()
        os.environ.pop(SERVICE, None)


def finish_run(exit_code: int) -> None:
    """End the W&B run of this process, if it has one, so that its files are complete before the process ends."""
    client = sys.modules.get("wandb")
    if client is not None and getattr(client, "run", None) is not None:
        with contextlib.suppress(Exception):
            client.finish(exit_code=exit_code)
