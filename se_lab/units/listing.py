"""Which backbones can take units: their stages, units, channels, insertions and parameters, without weights.

A net has to be built to be inspected, a tenth of a second each, and there are well over a thousand: the index of those
that were built is kept in SE-Lab's cache folder, a file for each version of timm, torchvision and the family tables.
While it is complete, nothing is imported but the standard library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_lab.spec import INSERTIONS, SpecError, nearest

if TYPE_CHECKING:
    from se_lab.units.places import Place

COLUMNS = ("backbone", "stages", "units", "channels", "insertions", "parameters", "own attention")


@dataclass(frozen=True)
class Listing:
    """A backbone, and where it can take units: nowhere, if `insertions` is empty."""

    name: str
    params: int = 0
    """Parameters of the plain net, for its library's number of classes."""
    units: Mapping[str, int] = field(default_factory=dict)
    """The number of units by stage."""
    insertions: Mapping[str, int] = field(default_factory=dict)
    """The number of units that each insertion has."""
    channels: tuple[int, int] = (0, 0)
    """The fewest and the most channels at the places of the first of these insertions."""
    own: int = 0
    """Modules of channel attention of its own."""

    def cells(self) -> tuple[str, ...]:
        """Return the texts of a row, as `COLUMNS` names them."""
        params, own_units = f"{self.params:,}", str(self.own or "")
        if not self.insertions:
            return self.name, "-", "-", "-", "none: no block that SE-Lab knows", params, own_units
        stages = list(self.units)
        maximum = max(self.insertions.values())
        insertions = [name if count == maximum else f"{name} ({count})" for name, count in self.insertions.items()]
        units = "+".join(map(str, self.units.values()))
        low, high = self.channels
        return self.name, f"{stages[0]}-{stages[-1]}", units, f"{low}-{high}", " ".join(insertions), params, own_units


def list_backbones(pattern: str = "*") -> list[Listing]:
    """Return the backbones of timm, SE-Lab and torchvision that match a name, a part of one, or a glob.

    Nets that are not in the index are built first, with a progress bar where there are many.

    Raises:
        SpecError: if none matches.
    """
    path = _index_file()
    names, listings = _read(path)
    names = names or _all_names()
    if pattern in names:
        matches = [pattern]
    else:
        matches = fnmatch.filter(names, pattern if set("*?[") & set(pattern) else f"*{pattern}*")
    if not matches:
        raise SpecError(f"no backbone is called {pattern!r}{nearest(pattern, names)}")
    new_listings: dict[str, Listing] = {}
    missing = [name for name in matches if name not in listings]
    try:
        for name in _with_bar(missing):
            new_listings[name] = _inspect(name)
    finally:
        if new_listings:
            _write(path, names, _read(path)[1] | new_listings)
    return [listings.get(name) or new_listings[name] for name in matches]


def _with_bar(names: Sequence[str]) -> Any:
    from rich.console import Console
    from rich.progress import track

    description = f"Indexing {len(names)} backbones, once"
    return track(names, description, console=Console(stderr=True), disable=len(names) < 20)


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
    """Return the index file, whose name depends on the versions and the family tables."""
    from se_lab.store import cache_folder

    folder = Path(__file__).parent
    digest = hashlib.sha256(version("torchvision").encode())
    sources = [folder / "listing.py", folder / "places.py", *(folder / "families").glob("*.py")]
    for source in sorted([*sources, *(folder.parent / "backbones").glob("*.py")]):
        digest.update(source.read_bytes())
    return cache_folder() / f"backbones-{version('timm')}-{digest.hexdigest()[:12]}.json"


def _read(path: Path) -> tuple[list[str], dict[str, Listing]]:
    """Return all names and the nets that were built; nothing where there is no index that can be read."""
    try:
        index = json.loads(path.read_bytes())
        rows = [Listing(**{**row, "channels": tuple(row["channels"])}) for row in index["nets"]]
        return [str(name) for name in index["names"]], {row.name: row for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return [], {}


def _write(path: Path, names: Sequence[str], listings: Mapping[str, Listing]) -> None:
    from se_lab.store import write_text_whole

    text = json.dumps({"names": names, "nets": [dataclasses.asdict(listing) for listing in listings.values()]})
    with contextlib.suppress(OSError):  # where nothing can be kept, the nets are built again
        write_text_whole(path, text)
