"""Parameters of a W&B sweep spec: checks, grid values, and random values.

Schema, grids and quantile functions equal those of W&B's search engine, the package `sweeps` 0.3.0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from se_lab.spec import nearest

Axis = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A problem in a sweep spec."""

    where: str
    """Key in the spec, such as parameters.optim.lr."""
    what: str
    """The value, or the problem with it."""
    todo: str
    """The allowed values, or the correction."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.todo}"


def _exponential(draw: Callable[[Axis, float], float]) -> Callable[[Axis, float], float]:
    return lambda axis, u: math.exp(draw(axis, u))


def _uniform(axis: Axis, u: float) -> float:
    return float(axis["min"] + u * (axis["max"] - axis["min"]))


def _log_uniform_values(axis: Axis, u: float) -> float:
    low, high = math.log(axis["min"]), math.log(axis["max"])
    return math.exp(low + u * (high - low))


def _inv_log_uniform(axis: Axis, u: float) -> float:
    return math.exp(-_uniform(axis, 1 - u))


def _normal(axis: Axis, u: float) -> float:
    from scipy.special import ndtri  # a slow import, which most specs do not need

    return float(axis.get("mu", 0.0) + axis.get("sigma", 1.0) * ndtri(u))


def _beta(axis: Axis, u: float) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(axis.get("a", 1), axis.get("b", 1), u))


def _quantise(draw: Callable[[Axis, float], float]) -> Callable[[Axis, float], float]:
    return lambda axis, u: float(np.round(draw(axis, u) / axis.get("q", 1.0)) * axis.get("q", 1.0))


_BOUNDED, _GAUSSIAN, _SHAPED = ("min", "max"), ("mu", "sigma"), ("a", "b")
_CONTINUOUS: dict[str, tuple[tuple[str, ...], Callable[[Axis, float], float]]] = {
    "uniform": (_BOUNDED, _uniform),
    "log_uniform": (_BOUNDED, _exponential(_uniform)),
    "log_uniform_values": (_BOUNDED, _log_uniform_values),
    "normal": (_GAUSSIAN, _normal),
    "log_normal": (_GAUSSIAN, _exponential(_normal)),
    "beta": (_SHAPED, _beta),
}
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Callable[[Axis, float], Any]]] = {
    "constant": (("value",), lambda axis, u: axis["value"]),
    "categorical": (("values",), lambda axis, u: axis["values"][_index(u, len(axis["values"]))]),
    "categorical_w_probabilities": (
        ("values", "probabilities"),
        lambda axis, u: axis["values"][
            min(int(np.searchsorted(np.cumsum(axis["probabilities"]), u, "right")), len(axis["values"]) - 1)
        ],
    ),
    "int_uniform": (_BOUNDED, lambda axis, u: axis["min"] + _index(u, axis["max"] - axis["min"] + 1)),
    "inv_log_uniform": (_BOUNDED, _inv_log_uniform),
    "inv_log_uniform_values": (_BOUNDED, _log_uniform_values),  # as in W&B's engine: min and max are values
    **_CONTINUOUS,
    **{f"q_{name}": ((*keys, "q"), _quantise(draw)) for name, (keys, draw) in _CONTINUOUS.items()},
}
"""The keys and the quantile function (axis, u) of each distribution."""

_OPTIONAL = ("mu", "sigma", "a", "b", "q")
_KEYS = ("value", "values", "probabilities", "distribution", *_BOUNDED, *_OPTIONAL)
_IN_A_GRID = ("constant", "categorical", "int_uniform", "q_uniform")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def _index(u: float, count: int) -> int:
    return max(math.ceil(u * count) - 1, 0)


def axis_findings(name: str, axis: Any, method: str) -> Iterator[Finding]:
    """Yield the parts of a parameter that W&B refuses or interprets differently."""
    where = f"parameters.{name}"
    if not _NAME.fullmatch(name):
        yield Finding(where, "W&B allows letters, digits, _ . and -, and no digit first", "use a field's dotted key")
        return
    if not isinstance(axis, Mapping):
        yield Finding(where, f"got {axis!r}", "it must be {value: …}, {values: […]} or a distribution")
        return
    if "parameters" in axis:
        todo = f"use dotted keys such as {name}.…, or mappings as the values of {name}"
        yield Finding(where, "nested parameters are passed to a trial as one mapping, which W&B does not check", todo)
        return
    unknown_keys = [str(key) for key in axis if key not in _KEYS]
    for key in unknown_keys:
        yield Finding(f"{where}.{key}", "unknown key", f"allowed are {', '.join(_KEYS)}{nearest(key, _KEYS)}")
    if unknown_keys:
        return
    distribution = axis.get("distribution", _infer_distribution(axis))
    if distribution is None:
        yield Finding(where, f"{dict(axis)!r} has no distribution", "it needs value, values, or min and max")
    elif distribution not in DISTRIBUTIONS:
        todo = f"allowed are {', '.join(DISTRIBUTIONS)}{nearest(str(distribution), DISTRIBUTIONS)}"
        yield Finding(f"{where}.distribution", f"got {distribution!r}", todo)
    elif findings := list(_wrong_keys(where, axis, distribution)) or list(_wrong_values(where, axis, distribution)):
        yield from findings
    elif method == "grid" and distribution not in _IN_A_GRID:
        todo = "a grid needs value, values, int_uniform or q_uniform; or set method: random"
        yield Finding(where, f"{distribution} has no values to enumerate", todo)


def _infer_distribution(axis: Axis) -> str | None:
    if "value" in axis:
        return "constant"
    if "values" in axis:
        return "categorical_w_probabilities" if "probabilities" in axis else "categorical"
    if "min" in axis and "max" in axis:
        return "int_uniform" if all(type(axis[key]) is int for key in _BOUNDED) else "uniform"
    return None


def _wrong_keys(where: str, axis: Axis, distribution: str) -> Iterator[Finding]:
    keys = DISTRIBUTIONS[distribution][0]
    for key in keys:
        if key not in axis and key not in _OPTIONAL:
            yield Finding(where, f"{distribution} needs {key}", f"it takes {', '.join(keys)}")
    for key in axis:
        if key != "distribution" and key not in keys:
            yield Finding(f"{where}.{key}", f"{distribution} has no {key}", f"it takes {', '.join(keys)}")


def _wrong_values(where: str, axis: Axis, distribution: str) -> Iterator[Finding]:
    if "values" in axis and (not isinstance(axis["values"], list) or not axis["values"]):
        yield Finding(f"{where}.values", f"got {axis['values']!r}", "it must be a list of at least one value")
        return
    if "probabilities" in axis:
        shares = axis["probabilities"]
        valid = isinstance(shares, list) and all(_is_number(share) and share >= 0 for share in shares)
        if not valid or len(shares) != len(axis["values"]) or not np.isclose(sum(shares), 1):
            todo = f"it must be {len(axis['values'])} non-negative numbers that sum to 1"
            yield Finding(f"{where}.probabilities", f"got {shares!r}", todo)
    numbers = [key for key in axis if key in (*_BOUNDED, *_OPTIONAL)]
    for key in numbers:
        value = axis[key]
        if not _is_number(value):
            text = "; YAML parses 1e-3 as text, and 1.0e-3 as a number" if isinstance(value, str) else ""
            yield Finding(f"{where}.{key}", f"got {value!r}", f"it must be a finite number{text}")
        elif distribution == "int_uniform" and type(value) is not int:
            yield Finding(f"{where}.{key}", f"got {value!r}", "int_uniform needs integers")
        elif (key == "sigma" and value < 0) or (key in ("q", "a", "b") and value <= 0):
            yield Finding(f"{where}.{key}", f"got {value!r}", "it must be above 0")
        elif key == "min" and distribution.endswith("_values") and value <= 0:
            yield Finding(f"{where}.{key}", f"got {value!r}", f"it must be above 0 for {distribution}")
    if not {*_BOUNDED} <= {*numbers} or not all(_is_number(axis[key]) for key in _BOUNDED):
        return
    if axis["min"] >= axis["max"]:
        yield Finding(where, f"min {axis['min']!r} is not less than max {axis['max']!r}", "min must be below max")
    if "distribution" not in axis and type(axis["min"]) is not type(axis["max"]):
        todo = "write both as integers or both with a decimal point, or add distribution: uniform"
        yield Finding(where, f"W&B refuses min {axis['min']!r} with max {axis['max']!r} as ambiguous", todo)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def grid_values(axis: Axis) -> list[Any]:
    """Return the distinct values of a parameter in a grid, in the order of W&B's engine."""
    distribution = axis.get("distribution", _infer_distribution(axis))
    if distribution == "constant":
        return [agent_value(axis["value"])]
    if distribution == "int_uniform":
        return list(range(axis["min"], axis["max"] + 1))
    if distribution == "q_uniform":
        return [agent_value(value) for value in np.arange(axis["min"], axis["max"], axis.get("q", 1.0)).tolist()]
    values = [agent_value(value) for value in axis["values"]]
    return list({json.dumps(value, sort_keys=True, default=str): value for value in values}.values())


def grid_size(axis: Axis) -> int:
    """Return the maximum number of grid values of a parameter, without building a range."""
    distribution = axis.get("distribution", _infer_distribution(axis))
    if distribution == "int_uniform":
        return int(axis["max"] - axis["min"] + 1)
    if distribution == "q_uniform":
        steps: float = (axis["max"] - axis["min"]) / axis.get("q", 1.0)
        return math.ceil(steps)
    return len(grid_values(axis))


def is_categorical(axis: Axis) -> bool:
    """Return whether a parameter has one value or a list of values, instead of a range."""
    return "value" in axis or "values" in axis


def draw(axis: Axis, u: float) -> Any:
    """Return the quantile of a parameter's distribution at `u`, from 0 to 1."""
    return agent_value(DISTRIBUTIONS[axis.get("distribution", _infer_distribution(axis))][1](axis, u))


def agent_value(value: Any) -> Any:
    """Return a value as a W&B agent passes it on: the JSON of W&B's server turns 3.0 into 3."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: agent_value(inner) for key, inner in value.items()}
    return [agent_value(inner) for inner in value] if isinstance(value, (list, tuple)) else value
