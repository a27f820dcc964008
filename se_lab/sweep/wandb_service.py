"""One W&B service process for all trials of a sweep, since each takes seconds to start."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

SERVICE = "WANDB_SERVICE"
"""W&B's environment variable with the address of a running service."""


@contextlib.contextmanager
def shared_service(enabled: bool) -> Iterator[None]:
    """Return a context that runs a W&B service for trials, if enabled and possible."""
    if not enabled or os.environ.get("WANDB_MODE") == "disabled" or os.environ.get(SERVICE):
        yield
        return
    import wandb

    with contextlib.suppress(Exception):  # logging must not stop a sweep
        wandb.setup(settings=wandb.Settings(silent=True))
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            wandb.teardown()
        os.environ.pop(SERVICE, None)


def finish_run(exit_code: int) -> None:
    """Finish the W&B run of this process, if any, so that its files are complete."""
    client = sys.modules.get("wandb")
    if client is not None and getattr(client, "run", None) is not None:
        with contextlib.suppress(Exception):
            client.finish(exit_code=exit_code)
