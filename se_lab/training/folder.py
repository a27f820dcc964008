"""The folder of a trial, which only the holder of the trial may write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from se_lab import store
from se_lab.store import RunRecord


@dataclass(frozen=True)
class TrialFolder:
    """A trial's folder; rank 0 holds the claim and writes files, and other ranks write nothing."""

    path: Path
    trial_id: str
    claim: store.Claim | None
    """The claim on rank 0; None on other ranks."""

    @property
    def is_held(self) -> bool:
        """Whether this rank writes the folder."""
        return self.claim is not None

    def check(self) -> None:
        """Raise ClaimLostError if another worker has claimed the trial."""
        if self.claim is not None:
            self.claim.check()

    def write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file atomically on rank 0.

        Raises:
            ClaimLostError: if another worker has claimed the trial.
        """
        if self.claim is not None:
            self.claim.check()
            store.write_whole(self.path / name, write)

    def write_record(self, record: RunRecord) -> RunRecord:
        """Write the record on rank 0, and return it as read back.

        Raises:
            ClaimLostError: if another worker has claimed the trial.
        """
        if self.claim is None:
            return record
        self.claim.check()
        return store.write_record(self.path, record)

    def clear_leftovers(self) -> None:
        """Delete incomplete files of a killed worker on rank 0."""
        if self.claim is not None:
            self.claim.check()
            store.clear_leftovers(self.path)
