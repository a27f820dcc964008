"""The table of units: the names that `model.se.unit` accepts, users' units included."""

from __future__ import annotations

from collections import UserDict

from se_lab.spec import SE_DETAILS, UNIT_FIELDS, SESpec, SpecError, check_choice
from se_lab.units import gather_excite, others
from se_lab.units.squeeze_excite import SqueezeExcite
from se_lab.units.unit import Unit


class _Units(UserDict[str, type[Unit]]):
    """A dictionary whose keys are valid unit names in a spec."""

    def __setitem__(self, name: str, unit: type[Unit]) -> None:
        if not (isinstance(unit, type) and issubclass(unit, Unit)):
            raise SpecError(f"UNITS[{name!r}] is {unit!r}; it must be a subclass of se_lab.Unit")
        for field in unit.fields:
            check_choice(f"{unit.__name__}.fields", field, SE_DETAILS)
        super().__setitem__(name, unit)
        UNIT_FIELDS[name] = unit.fields  # specs check names, and leave moot fields out, without PyTorch

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del UNIT_FIELDS[name]


UNITS = _Units(
    {
        "se": SqueezeExcite,
        "ese": others.ESE,
        "eca": others.ECA,
        "ceca": others.CECA,
        "ge": gather_excite.GatherExcite,
        "ge_2": gather_excite.GatherExcite2,
        "ge_4": gather_excite.GatherExcite4,
        "ge_8": gather_excite.GatherExcite8,
        "ge_theta_2": gather_excite.GatherExciteTheta2,
        "ge_theta_4": gather_excite.GatherExciteTheta4,
        "ge_theta_8": gather_excite.GatherExciteTheta8,
        "ge_plus_2": gather_excite.GatherExcitePlus2,
        "ge_plus_4": gather_excite.GatherExcitePlus4,
        "ge_plus_8": gather_excite.GatherExcitePlus8,
        "gc": others.GlobalContext,
        "cbam": others.CBAM,
        "lcbam": others.LightCBAM,
        "coord": others.CoordAttn,
        "scoord": others.SimpleCoordAttn,
        "ela": others.EfficientLocalAttn,
        "strip": others.StripAttn,
        "srm": others.SRM,
        "gct": others.GCT,
        "simam": others.SimAM,
    }
)
"""Unit classes by name, each created with the number of channels and the SESpec; users can add entries."""


def build_unit(se: SESpec, channels: int) -> Unit:
    """Return the unit of a spec for maps of (N, channels, H, W)."""
    return UNITS[se.unit](channels, se)
