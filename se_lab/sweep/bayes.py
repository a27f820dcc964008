"""Bayesian search with Optuna's Gaussian process, as W&B's server does for its agents.

Before its trial runs, each proposal is written to a file by exactly one of the processes that share the store:

<store>/.searches/<search>/000001.json    the point in the search space, and the trial's flat spec

Results are in the trials' records, so a search can be resumed and shared by any number of processes. A proposal
depends only on the seed, its number, and the results known when it is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from se_lab import store
from se_lab.spec import RunSpec, SpecError, dotted, run_spec, seed_of, trial_of
from se_lab.sweep.axes import Axis, draw, grid_values, is_categorical
from se_lab.sweep.early_stop import Metric

Place = dict[str, float]
"""A point in the search space: each varied parameter's quantile, from 0 to 1, or the index of its value."""
GIVE_UP = 20
"""Number of consecutive duplicate proposals after which the next is drawn at random."""


@dataclass(frozen=True)
class BayesSearch:
    """The Bayesian search of a sweep spec."""

    parameters: Mapping[str, Axis]
    common: RunSpec
    metric: Metric
    cap: int
    """Total number of trials."""
    seed: int

    @property
    def search_id(self) -> str:
        """A hash of the search, 12 hexadecimal digits, without the cap, which may be raised."""
        parts = [self.parameters, dotted(self.common), self.metric.name, self.metric.maximize, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def proposed_trials(self, folder: str | Path) -> list[RunSpec]:
        """Return the trials that a store's search has proposed so far, in order."""
        return [trial for _, trial in self._proposals(folder)]

    def propose(self, folder: str | Path) -> RunSpec | None:
        """Propose a trial, record it in the store and return it; None at the cap or the target.

        Raises:
            SpecError: if Optuna is missing, or a point is not a valid trial.
        """
        while True:
            proposals = self._proposals(folder)
            values = [self._value(folder, trial) for _, trial in proposals]
            if len(proposals) >= self.cap or self._target_reached(values):
                return None
            candidate = self._next(proposals, values)
            if candidate is None:
                return None
            place, flat = candidate
            path = self._list(folder) / f"{len(proposals) + 1:06d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            if store.create_once(path, store.sealed({"place": place, "spec": flat})):
                return run_spec(flat)

    def corners(self) -> list[RunSpec]:
        """Return trials at the centre of the space and at each bound or value of a parameter.

        Raises:
            SpecError: if one of these points is not a valid trial.
        """
        middle: Place = {name: 0 if is_categorical(axis) else 0.5 for name, axis in self._varied().items()}
        ends = {n: range(len(grid_values(a))) if is_categorical(a) else (0.0, 1.0) for n, a in self._varied().items()}
        places = [middle, *(middle | {name: end} for name, values in ends.items() for end in values)]
        return [self._trial(place) for place in places]

    def _list(self, folder: str | Path) -> Path:
        return Path(folder, ".searches", self.search_id)

    def _proposals(self, folder: str | Path) -> list[tuple[Place, RunSpec]]:
        proposals = [_proposal(path) for path in sorted(self._list(folder).glob("[0-9]*.json"))]
        return [(proposal["place"], run_spec(proposal["spec"])) for proposal in proposals]

    def _value(self, folder: str | Path, trial: RunSpec) -> float | str:
        """Return a trial's best value (smaller is better), 'failed', or 'running' without a record."""
        path = store.trial_folder(folder, trial.trial_id)
        record = store.read_record(path)
        if record is None:
            return "running"
        history = self.metric.history(path)
        if record.status == "failed":
            if not history or self.metric.impute == "worst":
                return "failed"
            return min(history) if self.metric.impute == "best" else history[-1]
        return min(history) if history else "failed"

    def _target_reached(self, values: list[float | str]) -> bool:
        if self.metric.target is None:
            return False
        target = -self.metric.target if self.metric.maximize else self.metric.target
        return any(isinstance(value, float) and value <= target for value in values)

    def _varied(self) -> dict[str, Axis]:
        return {n: a for n, a in sorted(self.parameters.items()) if not is_categorical(a) or len(grid_values(a)) > 1}

    def _trial(self, place: Place) -> RunSpec:
        point = {}
        for name, axis in self.parameters.items():
            if is_categorical(axis):
                point[name] = grid_values(axis)[int(place.get(name, 0))]
            else:
                point[name] = draw(axis, place[name])
        return trial_of(self.common, point)

    def _next(
        self, earlier: list[tuple[Place, RunSpec]], values: list[float | str]
    ) -> tuple[Place, dict[str, Any]] | None:
        """Return the place of a new trial, and its flat spec; None if the space seems exhausted."""
        trial_ids = {trial.trial_id for _, trial in earlier}
        places = [place for place, _ in earlier]
        axes, number = self._varied(), len(earlier) + 1
        results = [value for value in values if isinstance(value, float)]
        start = max(2 * len(axes), 4)
        for attempt in range(10 * GIVE_UP):
            seed = seed_of(self.seed, "bayes", number, attempt)
            if len(results) < start or attempt >= GIVE_UP or not axes:
                place = _random_place(axes, seed)
            else:
                place = suggest(axes, places, _impute(values, max(results)), seed)
            if (trial := self._trial(place)).trial_id not in trial_ids:
                return place, trial.flat()
        return None


def suggest(axes: Mapping[str, Axis], places: list[Place], values: list[float | None], seed: int) -> Place:
    """Return the place where a Gaussian process expects the largest improvement.

    Args:
        axes: The varied parameters.
        places: The places proposed so far.
        values: The value of each place, where smaller is better; None while its trial runs.
        seed: Seed of the sampler.

    Raises:
        SpecError: if Optuna is missing.
    """
    optuna = import_optuna()
    space = {
        name: optuna.distributions.CategoricalDistribution(list(range(len(grid_values(axis)))))
        if is_categorical(axis)
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for name, axis in axes.items()
    }
    sampler = optuna.samplers.GPSampler(seed=seed % 2**32, n_startup_trials=1)
    study = optuna.create_study(sampler=sampler)
    state = optuna.trial.TrialState
    for place, value in zip(places, values, strict=True):
        result = {"value": value, "state": state.COMPLETE} if value is not None else {"state": state.RUNNING}
        study.add_trial(optuna.trial.create_trial(params=place, distributions=space, **result))
    return dict(study.ask(space).params)


def import_optuna() -> Any:
    """Import Optuna, turn off its log messages, and return the module.

    Raises:
        SpecError: if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SpecError("method is bayes, which needs Optuna: pip install 'se-lab[bayes]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _random_place(axes: Mapping[str, Axis], seed: int) -> Place:
    shares = {name: float(np.random.default_rng(seed_of(seed, name)).random()) for name in axes}
    return {
        name: _value_index(axis, shares[name]) if is_categorical(axis) else shares[name] for name, axis in axes.items()
    }


def _value_index(axis: Axis, share: float) -> int:
    """Return the index of the value at a quantile of a categorical parameter."""
    values = grid_values(axis)
    if "probabilities" in axis:
        return values.index(draw(axis, share))
    return min(int(share * len(values)), len(values) - 1)


def _impute(values: list[float | str], worst: float) -> list[float | None]:
    """Replace 'failed' by the worst known value, as W&B does, and 'running' by None."""
    return [value if isinstance(value, float) else worst if value == "failed" else None for value in values]


def _proposal(path: Path) -> dict[str, Any]:
    try:
        return store.read_sealed(path)
    except ValueError as error:
        raise SpecError(f"{path} is not a valid proposal of a search: {error}") from None
