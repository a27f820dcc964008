"""List the backbones that can take units, with their stages, insertions and parameters.

A net has to be built to be inspected, which takes a tenth of a second, and there are over a thousand nets. An index of
the inspected nets is therefore kept in SE-Lab's cache folder, in one file per version of timm, torchvision and the
family tables. If the index is complete, only the standard library is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from se_lab.spec import INSERTIONS, SpecError, nearest

if TYPE_CHECKING:
    from se_lab.units.places import Place

COLUMNS = ("backbone", "stages", "units", "channels", "insertions", "parameters", "own attention")


@dataclass(frozen=True)
class Listing:
    """A backbone and its places for units; it has none if `insertions` is empty."""

    name: str
    params: int = 0
    """The number of parameters of the plain net with its default number of classes."""
    units: Mapping[str, int] = field(default_factory=dict)
    """The number of units by stage."""
    insertions: Mapping[str, int] = field(default_factory=dict)
    """The number of units by insertion."""
    channels: tuple[int, int] = (0, 0)
    """The smallest and the largest number of channels, for the first of these insertions."""
    own: int = 0
    """The number of channel-attention modules that the net already has."""

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table row, with the columns `COLUMNS`."""
        params, own_units = f"{self.params:,}", str(self.own or "")
        if not self.insertions:
            return self.name, "-", "-", "-", "none: no known blocks", params, own_units
        stages = list(self.units)
        maximum = max(self.insertions.values())
        insertions = [name if count == maximum else f"{name} ({count})" for name, count in self.insertions.items()]
        units = "+".join(map(str, self.units.values()))
        low, high = self.channels
        return self.name, f"{stages[0]}-{stages[-1]}", units, f"{low}-{high}", " ".join(insertions), params, own_units


def list_backbones(pattern: str = "*") -> list[Listing]:
    """Return the backbones whose names match a name, part of a name, or a glob.

    Nets that are not in the index are built first, with a progress bar for 20 or more.

    Raises:
        SpecError: if no backbone matches.
    """
    path = _index_file()
    names, listings = _read(path)
    names = names or _all_names()
    if pattern in names:
        matches = [pattern]
    else:
        matches = fnmatch.filter(names, pattern if set("*?[") & set(pattern) else f"*{pattern}*")
    if not matches:
        raise SpecError(f"unknown backbone {pattern!r}{nearest(pattern, names)}")
    new_listings: dict[str, Listing] = {}
    missing = [name for name in matches if name not in listings]
    try:
        for name in _with_bar(missing):
            new_listings[name] = _inspect(name)
    finally:
        if new_listings:
            _write(path, names, _read(path)[1] | new_listings)
    return [listings.get(name) or new_listings[name] for name in matches]


def _with_bar(names: Sequence[str]) -> Iterable[str]:
    if len(names) < 20:
        return names
    from rich.console import Console
    from rich.progress import track

    print(f"indexing {len(names)} backbones, once; this takes minutes", file=sys.stderr)  # a bar needs a terminal
    return track(names, "", console=Console(stderr=True))


def _all_names() -> list[str]:
    import timm

    from se_lab.backbones import torchvision_names

    return [*timm.list_models(), *torchvision_names()]


def _inspect(name: str) -> Listing:
    import timm
    import torch

    from se_lab.backbones import PREFIX, build_torchvision
    from se_lab.units.places import survey

    with torch.device("meta"):
        try:
            net = build_torchvision(name, pretrained=False) if name.startswith(PREFIX) else timm.create_model(name)
        except TypeError:  # torchvision's SqueezeNet has no linear classifier
            return Listing(name)
    params = sum(parameter.numel() for parameter in net.parameters())
    try:
        return _listing(name, params, survey(net))
    except SpecError:
        return Listing(name, params)


def _listing(name: str, params: int, places: Sequence[Place]) -> Listing:
    stages = Counter(place.stage for place in places if place.spots)
    units = {str(stage): stages[stage] for stage in sorted(stages)}
    counts = Counter(insertion for place in places for insertion in place.spots)
    insertions = {insertion: counts[insertion] for insertion in INSERTIONS if counts[insertion]}
    first_insertion = next(iter(insertions), "")
    channels = [place.spots[first_insertion].channels for place in places if first_insertion in place.spots] or [0]
    own_count = sum(len(place.own) for place in places)
    return Listing(name, params, units, insertions, (min(channels), max(channels)), own_count)


def _index_file() -> Path:
    """Return the path of the index, which depends on the versions and the family tables."""
    from se_lab.store import cache_folder

    folder = Path(__file__).parent
    digest = hashlib.sha256(version("torchvision").encode())
    sources = [folder / "listing.py", folder / "places.py", *(folder / "families").glob("*.py")]
    for source in sorted([*sources, *(folder.parent / "backbones").glob("*.py")]):
        digest.update(source.read_bytes())
    return cache_folder() / f"backbones-{version('timm')}-{digest.hexdigest()[:12]}.json"


def _read(path: Path) -> tuple[list[str], dict[str, Listing]]:
    """Return all names and the inspected nets; both are empty without a valid index."""
    try:
        index = json.loads(path.read_bytes())
        rows = [Listing(**{**row, "channels": tuple(row["channels"])}) for row in index["nets"]]
        return [str(name) for name in index["names"]], {row.name: row for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return [], {}


def _write(path: Path, names: Sequence[str], listings: Mapping[str, Listing]) -> None:
    from se_lab.store import write_text_whole

    text = json.dumps({"names": names, "nets": [dataclasses.asdict(listing) for listing in listings.values()]})
    with contextlib.suppress(OSError):  # without an index, the nets are built again next time
        write_text_whole(path, text)
