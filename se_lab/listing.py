"""Which backbones can take SE units: their stages, units, channels and insertions, without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch

import se_lab.backbones  # noqa: F401  (registers SE-Lab's own nets with timm)
from se_lab.places import Place, survey
from se_lab.spec import INSERTIONS, SpecError, nearest


@dataclass(frozen=True)
class Listing:
    """A backbone, and where it can take SE units: nowhere, if `places` is empty."""

    name: str
    places: tuple[Place, ...]

    @property
    def units(self) -> dict[int, int]:
        """The number of units by stage."""
        return dict(sorted(Counter(place.stage for place in self.places if place.spots).items()))

    @property
    def insertions(self) -> dict[str, int]:
        """The number of units that each insertion has."""
        have = Counter(insertion for place in self.places for insertion in place.spots)
        return {insertion: have[insertion] for insertion in INSERTIONS if have[insertion]}

    def text(self) -> str:
        """Return a line: units by stage, channels of the standard place, insertions, attention of its own."""
        if not self.places:
            return f"{self.name:<36} no unit that SE-Lab knows"
        stages = " ".join(f"{stage}:{count}" for stage, count in self.units.items())
        first = next(iter(self.insertions), "standard")
        channels = [place.spots[first].channels for place in self.places if first in place.spots]
        most = max(self.insertions.values(), default=0)
        have = [name if count == most else f"{name} ({count})" for name, count in self.insertions.items()]
        own = sum(len(place.own) for place in self.places)
        line = f"{self.name:<36} {stages:<28} C {min(channels)}-{max(channels):<6} {' '.join(have)}"
        return line + (f"; {own} of its own" if own else "")


def list_backbones(pattern: str = "*") -> Iterator[Listing]:
    """Yield the backbones of timm and SE-Lab whose names match a pattern such as 'resnet*'; a bare word is a part.

    Raises:
        SpecError: if none does.
    """
    names = timm.list_models(pattern if "*" in pattern or timm.is_model(pattern) else f"*{pattern}*")
    if not names:
        raise SpecError(f"no backbone is called {pattern!r}{nearest(pattern, timm.list_models())}")
    for name in names:
        with torch.device("meta"):
            net = timm.create_model(name)
        try:
            places = survey(net)
        except SpecError:
            places = []
        yield Listing(name, tuple(places))
