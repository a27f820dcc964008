"""A trial's folder, for the worker that holds the trial to write: each write first checks the claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from se_lab import store
from se_lab.store import RunRecord


@dataclass(frozen=True)
class TrialFolder:
    """A trial's folder and the right to write it, which rank 0 has."""

    path: Path
    trial_id: str
    claim: store.Claim | None
    """None on the other ranks, which write nothing."""

    @property
    def is_held(self) -> bool:
        """Whether this rank writes the folder."""
        return self.claim is not None

    def check(self) -> None:
        """Raise ClaimLostError if another worker has taken the trial."""
        if self.claim is not None:
            self.claim.check()

    def write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file whole, on rank 0.

        Raises:
            ClaimLostError: if another worker has taken the trial.
        """
        if self.claim is not None:
            self.claim.check()
            store.write_whole(self.path / name, write)

    def write_record(self, record: RunRecord) -> RunRecord:
        """Write the record, on rank 0, and return it as it will be read.

        Raises:
            ClaimLostError: if another worker has taken the trial.
        """
        if self.claim is None:
            return record
        self.claim.check()
        return store.write_record(self.path, record)

    def clear_leftovers(self) -> None:
        """Delete incomplete files of a killed worker, on rank 0."""
        if self.claim is not None:
            self.claim.check()
            store.clear_leftovers(self.path)
