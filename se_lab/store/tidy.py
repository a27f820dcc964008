"""Find and delete files of a store that are no longer needed; results are always kept."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from se_lab import store
from se_lab.spec import SpecError, check_choice
from se_lab.store import RunRecord

KEEP = ("tested", "last", "best", "none")
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")
EXCITATIONS = ("excitations.safetensors", "excitations.part", "explorer.html")
"""The large files that `se-lab excitations` writes into a trial's folder."""
CLAIM_DAYS = 1.0
"""Minimum age of a superseded claim to delete: no worker can still be about to create its number."""
TEMP_SECONDS = 3600.0
"""Minimum age of a temporary file to delete; some are written by processes that hold no claim."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that is no longer needed."""

    path: Path
    bytes: int
    """The size of the file, or of all files in the folder."""
    files: int
    kind: str
    """checkpoint, foreign trial, temporary file, old claim, or synced W&B run."""
    trial_id: str


_HEX = "[0-9a-f]" * 32


def find_leftovers(
    folder: str | Path,
    *,
    keep: Collection[str] = ("last", "best"),
    named: Collection[str] | None = None,
    days: float = 0,
) -> list[Leftover]:
    """Return the files of a store that are no longer needed, trial by trial.

    Args:
        folder: The store.
        keep: Checkpoints of finished trials to keep: last (previous.ckpt if last.ckpt is missing), best, tested (the
            one of the two that was tested), or none. Checkpoints of unfinished trials are always kept.
        named: Trials to keep; for all others, only the results are kept. By default, keep all trials.
        days: Keep files of trials that were modified within this number of days.

    Raises:
        SpecError: for an unknown value of `keep`, or a negative number of days.
        FileNotFoundError: if the store does not exist.
    """
    for name in keep:
        check_choice("--keep", name, KEEP)
    if "none" in keep and len(set(keep)) > 1:
        raise SpecError(f"--keep is {' '.join(keep)}; none cannot be combined with other values")
    if not days >= 0:
        raise SpecError(f"--older is {days:g}; it must be at least 0 days")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of trials")
    store.check_store(folder)
    searches = folder / ".searches"
    search_folders = [] if searches.is_symlink() else sorted(searches.glob("*"))
    paths = [_old_temp_files(folder, f".*.{_HEX}"), *(_old_temp_files(search, f".{_HEX}") for search in search_folders)]
    leftovers = [_leftover(path, "temporary file", "") for path in itertools.chain.from_iterable(paths)]
    for trial in sorted(path for path in folder.iterdir() if store.is_trial(path)):
        if store.holder_of(trial) is None and _age(trial) >= 86400 * days:
            leftovers += _of_trial(trial, keep, named)
    return leftovers


def delete(
    folder: str | Path,
    *,
    keep: Collection[str] = ("last", "best"),
    named: Collection[str] | None = None,
    days: float = 0,
) -> tuple[list[Leftover], list[str]]:
    """Delete the result of `find_leftovers`; return the deleted files and the busy trials.

    Each trial is claimed while its files are deleted, and inspected again under the claim; busy trials are skipped.
    """
    leftovers = find_leftovers(folder, keep=keep, named=named, days=days)
    deletions, busy_ids = [], []
    for trial_id in dict.fromkeys(leftover.trial_id for leftover in leftovers):
        trial = Path(folder) / trial_id
        if not trial_id:
            deletions += [leftover for leftover in leftovers if not leftover.trial_id and _remove(leftover)]
            continue
        try:
            with store.claim(trial) as claim:
                for leftover in _of_trial(trial, keep, named, (claim.path.name,)):
                    claim.check()
                    deletions += [leftover] if _remove(leftover) else []
                _remove_if_empty(trial, claim)
        except (store.TrialBusyError, store.ClaimLostError):
            busy_ids.append(trial_id)
    return deletions, busy_ids


def _age(trial: Path) -> float:
    """Return the seconds since a file of the trial, claims excluded, was modified."""
    paths = [path for path in trial.iterdir() if path.name != "claims"]
    return time.time() - max((path.stat().st_mtime for path in paths), default=trial.stat().st_mtime)


def _of_trial(
    trial: Path, keep: Collection[str], named: Collection[str] | None, own_claims: Sequence[str] = ()
) -> Iterator[Leftover]:
    record = store.read_record(trial)
    for part in (trial, trial / "excitations", trial / "claims"):
        for path in _old_temp_files(part, ".*"):
            yield _leftover(path, "temporary file", trial.name)
    foreign = named is not None and trial.name not in named
    if foreign:
        for path in (*(trial / name for name in CHECKPOINTS), *(trial / "excitations" / name for name in EXCITATIONS)):
            if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
                yield _leftover(path, "foreign trial", trial.name)
    elif record is not None and record.status == "finished":
        for path in _spare_checkpoints(trial, record, keep):
            yield _leftover(path, "checkpoint", trial.name)
    for path in _synced(trial, record):
        yield _leftover(path, "synced W&B run", trial.name)
    for path in _old_claims(trial / "claims", own_claims):
        yield _leftover(path, "old claim", trial.name)


def _spare_checkpoints(trial: Path, record: RunRecord, keep: Collection[str]) -> list[Path]:
    tested_name = "best" if record.spec.get("train.select") == "best" else "last"
    names = {f"{tested_name if name == 'tested' else name}.ckpt" for name in keep if name != "none"}
    file_names = {name for name in CHECKPOINTS if (trial / name).is_file() and not (trial / name).is_symlink()}
    if "last.ckpt" in names and "last.ckpt" not in file_names:
        names.add("previous.ckpt")
    return [trial / name for name in sorted(file_names - names)]


def _synced(trial: Path, record: RunRecord | None) -> list[Path]:
    """Return the folders of W&B runs that have been uploaded with this record."""
    sent = False
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        mark = json.loads((trial / "synced.json").read_text(encoding="utf-8"))
        sent = record is not None and (mark["started"], mark["status"]) == (record.started, record.status)
    if (trial / "wandb").is_symlink():
        return []
    runs = [path for path in (trial / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink()]
    return sorted(path for path in runs if sent or any(path.glob("*.wandb.synced")))


def _old_claims(claims: Path, own_claims: Sequence[str]) -> list[Path]:
    """Return the claims that were superseded over CLAIM_DAYS ago, and their .released files."""
    now = time.time()
    paths: list[Path] = []
    for path in store.claims_in(claims)[: -1 - len(own_claims)]:  # the next claim's number depends on the latest one
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime > 86400 * CLAIM_DAYS:
                paths += [file for file in (path, path.with_suffix(".released")) if file.is_file()]
    return paths


def _old_temp_files(folder: Path, pattern: str) -> list[Path]:
    """Return the old temporary files in a folder, which dead workers left."""
    now = time.time()
    if folder.is_symlink():
        return []
    paths = (path for path in folder.glob(pattern) if store.is_temporary(path))
    return sorted(path for path in paths if now - path.lstat().st_mtime > TEMP_SECONDS)


def _leftover(path: Path, kind: str, trial_id: str) -> Leftover:
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()] if path.is_dir() else [path]
    size = sum(file.lstat().st_size for file in files)
    return Leftover(path, size, len(files), kind, trial_id)


def _remove(leftover: Leftover) -> bool:
    try:
        if leftover.path.is_dir() and not leftover.path.is_symlink():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink()
    except FileNotFoundError:
        return False
    return True


def _remove_if_empty(trial: Path, claim: store.Claim) -> None:
    """Delete a trial's folder if it contains only claims, after renaming it."""
    claims = store.claims_in(trial / "claims")
    own = {trial / "claims", *claims, *(path.with_suffix(".released") for path in claims)}
    if {*trial.iterdir(), *(trial / "claims").iterdir()} - own:
        return
    claim.check()
    temp_path = store.temp_path_of(trial)
    trial.rename(temp_path)
    shutil.rmtree(temp_path)
