"""Which backbones can take SE units: their stages, units, channels and insertions, without weights.

To look at a net means building it, a tenth of a second each, and timm has well over a thousand: what was seen is kept
in the user's cache folder, under the version of timm and the source of what looks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm

from se_lab.spec import INSERTIONS, SpecError, nearest
from se_lab.units.places import Place, survey


@dataclass(frozen=True)
class Listing:
    """A backbone, and where it can take SE units: nowhere, if `insertions` is empty."""

    name: str
    units: Mapping[str, int] = field(default_factory=dict)
    """The number of units by stage."""
    insertions: Mapping[str, int] = field(default_factory=dict)
    """The number of units that each insertion has."""
    channels: tuple[int, int] = (0, 0)
    """The fewest and the most at the places of the first of these insertions."""
    own: int = 0
    """Modules of attention of its own."""

    def text(self) -> str:
        """Return a line: units by stage, channels of the standard place, insertions, attention of its own."""
        if not self.insertions:
            return f"{self.name:<36} no unit that SE-Lab knows"
        stages = " ".join(f"{stage}:{count}" for stage, count in self.units.items())
        most = max(self.insertions.values())
        have = [name if count == most else f"{name} ({count})" for name, count in self.insertions.items()]
        low, high = self.channels
        line = f"{self.name:<36} {stages:<28} C {low}-{high:<6} {' '.join(have)}"
        return line + (f"; {self.own} of its own" if self.own else "")


def list_backbones(pattern: str = "*") -> Iterator[Listing]:
    """Yield the backbones of timm and SE-Lab whose names match a pattern such as 'resnet*'; a bare word is a part.

    Raises:
        SpecError: if none does.
    """
    import se_lab.backbones  # noqa: F401  (registers SE-Lab's own nets with timm)

    names = timm.list_models(pattern if "*" in pattern or timm.is_model(pattern) else f"*{pattern}*")
    if not names:
        raise SpecError(f"no backbone is called {pattern!r}{nearest(pattern, timm.list_models())}")
    path = _cache_file()
    known, new = _read(path), {}
    try:
        for name in names:
            if name not in known:
                new[name] = _look_at(name)
            yield known.get(name) or new[name]
    finally:
        if new:
            _write(path, _read(path) | new)


def _look_at(name: str) -> Listing:
    import torch

    with torch.device("meta"):
        net = timm.create_model(name)
    with contextlib.suppress(SpecError):
        return _listing(name, survey(net))
    return Listing(name)


def _listing(name: str, places: Sequence[Place]) -> Listing:
    stages = Counter(place.stage for place in places if place.spots)
    units = {str(stage): stages[stage] for stage in sorted(stages)}
    counts = Counter(insertion for place in places for insertion in place.spots)
    insertions = {insertion: counts[insertion] for insertion in INSERTIONS if counts[insertion]}
    first = next(iter(insertions), "")
    channels = [place.spots[first].channels for place in places if first in place.spots] or [0]
    own = sum(len(place.own) for place in places)
    return Listing(name, units, insertions, (min(channels), max(channels)), own)


def _cache_file() -> Path:
    """Return where what was seen is kept: another version of timm, or of what looks, has another file."""
    here = Path(__file__).parent
    seen = hashlib.sha256(timm.__version__.encode())
    for source in (
        here / "listing.py",
        here / "places.py",
        *sorted((here / "families").glob("*.py")),
        *sorted((here.parent / "backbones").glob("*.py")),
    ):
        seen.update(source.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "se-lab" / f"backbones-{timm.__version__}-{seen.hexdigest()[:12]}.json"


def _read(path: Path) -> dict[str, Listing]:
    try:
        rows = json.loads(path.read_bytes())
        return {row["name"]: Listing(**{**row, "channels": tuple(row["channels"])}) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _write(path: Path, listings: Mapping[str, Listing]) -> None:
    from se_lab.store import write_whole

    text = json.dumps([dataclasses.asdict(listing) for listing in listings.values()])
    with contextlib.suppress(OSError):  # where nothing can be kept, the nets are built again
        write_whole(path, lambda file: file.write(text.encode()))
