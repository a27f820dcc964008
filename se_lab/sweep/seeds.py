"""Add seeds until the intervals are narrow enough, as a group-sequential design.

Looking at the intervals after every seed raises the rate of false positives far above 5 %. Therefore each look has its
own level (Lan and DeMets 1983, with the spending function close to Pocock's boundaries), so that the simultaneous
intervals of all looks hold together at 5 %. The looks are recorded in the store, so that tables of the sweep include
the added seeds and use the level of the last look:

<store>/.grown/<hash of the trials in the spec>.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from se_lab import store
from se_lab.spec import RunSpec, SpecError

ALPHA = 0.05
HalfWidth = Callable[[Sequence[RunSpec], float], float]
"""Returns the largest half-width, in points, of the simultaneous intervals of trials at a level."""


@dataclass(frozen=True)
class Look:
    """An interim analysis."""

    seeds: int
    """Number of seeds of each variant."""
    level: float
    """Error rate of the simultaneous intervals, such as 0.02 for 98 % intervals."""


@dataclass(frozen=True)
class Growth:
    """The seeds added to a sweep."""

    most: int
    """Maximum number of seeds of each variant, on which the levels of the looks depend."""
    looks: list[Look]
    """The looks (interim analyses) so far, including one whose trials still run."""


def growth_of(trials: Sequence[RunSpec], store_folder: str | Path) -> Growth | None:
    """Return the record of the seeds added to the sweep with these trials, or None."""
    path = note_path(".grown", trials, store_folder)
    try:
        values = store.read_sealed(path)
        return Growth(values["most"], [Look(**look) for look in values["looks"]])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{path} is not a valid record of added seeds: {error}") from None


def grown(trials: Sequence[RunSpec], store_folder: str | Path) -> list[RunSpec]:
    """Return the trials of a sweep, including those with added seeds."""
    growth = growth_of(trials, store_folder)
    return list(trials) if growth is None else with_seeds(trials, growth.looks[-1].seeds)


def note_path(kind: str, trials: Sequence[RunSpec], store_folder: str | Path) -> Path:
    """Return the path of a store's note on the sweep with these trials."""
    ids = "".join(sorted(trial.trial_id for trial in trials))
    return Path(store_folder, kind, f"{hashlib.sha256(ids.encode()).hexdigest()[:12]}.json")


def plan_looks(start: int, most: int, comparisons: int, alpha: float = ALPHA) -> list[Look]:
    """Return a look per number of seeds from `start` to `most`, with total error rate `alpha`.

    Args:
        start: Number of seeds of each variant at the first look.
        most: Number of seeds of each variant at the last look.
        comparisons: Number of variants compared with the baseline. Each comparison spends its own share of `alpha`,
            since the largest of many differences is less correlated between looks.
        alpha: Error rate of all looks together.

    Raises:
        SpecError: if `most` is below `start`.
    """
    if most < start:
        raise SpecError(f"--max_seeds is {most}; the sweep already has {start} seeds")
    counts = range(start, most + 1)
    levels = look_levels([count / most for count in counts], alpha / comparisons)
    return [Look(count, comparisons * level) for count, level in zip(counts, levels, strict=True)]


def check_compared(trials: Sequence[RunSpec]) -> None:
    """Raise SpecError unless each backbone has variants with and without units."""
    for backbone in dict.fromkeys(trial.model.backbone for trial in trials):
        insertions = [trial.model.se.insertion == "none" for trial in trials if trial.model.backbone == backbone]
        if all(insertions) or not any(insertions):
            missing = "no variant with units" if all(insertions) else "no variant without units (insertion none)"
            raise SpecError(f"--until_halfwidth compares variants with the baseline, and {backbone} has {missing}")


def look_levels(times: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the two-sided level of each look, for an error rate `alpha` of all looks together.

    The error rate spent by time t is alpha * log(1 + (e - 1) t). The levels follow from the distribution of a Brownian
    motion that has not crossed a bound, integrated numerically (Armitage, McPherson and Rowe 1969).

    Args:
        times: The fraction of the maximum number of seeds at each look, increasing to 1.
        alpha: Error rate of all looks together.
    """
    grid = np.linspace(-6.0, 6.0, 2401)  # values of the motion
    levels: list[float] = []
    density, last_time, last_target = np.empty(0), 0.0, 0.0
    for time in times:
        if last_time == 0.0:
            density = norm.pdf(grid, scale=math.sqrt(time))
        else:
            step = norm.pdf(grid[:, None] - grid[None, :], scale=math.sqrt(time - last_time))
            density = step @ density * (grid[1] - grid[0])
        target = alpha * math.log(1 + (math.e - 1) * time)
        mass = np.cumsum(density[::-1]) - density[::-1] / 2
        tail = 2 * mass[: len(grid) // 2] * (grid[1] - grid[0])
        bound = float(np.interp(target - last_target, tail, grid[::-1][: len(grid) // 2]))
        levels.append(2 * float(norm.sf(bound / math.sqrt(time))))
        density = np.where(np.abs(grid) < bound, density, 0.0)
        last_time, last_target = time, target
    return levels


def by_variant(trials: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Group trials by variant, so that the trials of a group differ only in the seed."""
    variants: dict[str, list[RunSpec]] = {}
    for trial in trials:
        variants.setdefault(dataclasses.replace(trial, seed=0).trial_id, []).append(trial)
    return list(variants.values())


def seeds_of(trials: Sequence[RunSpec]) -> list[int]:
    """Return the seeds of a sweep, in the order of the spec.

    Raises:
        SpecError: if variants have different seeds, or only one seed.
    """
    seed_lists = [[trial.seed for trial in variant] for variant in by_variant(trials)]
    if not seed_lists or any(sorted(seeds) != sorted(seed_lists[0]) for seeds in seed_lists):
        raise SpecError("adding seeds needs a grid in which every variant has the same seeds")
    if len(seed_lists[0]) < 2:
        raise SpecError("adding seeds needs a sweep with at least 2 seeds, to estimate the spread")
    return seed_lists[0]


def with_seeds(trials: Sequence[RunSpec], count: int) -> list[RunSpec]:
    """Return the trials of all variants with `count` seeds: the sweep's, then consecutive ones."""
    sweep_seeds = seeds_of(trials)
    seeds = [*sweep_seeds, *range(max(sweep_seeds) + 1, max(sweep_seeds) + 1 + count - len(sweep_seeds))]
    return [dataclasses.replace(variant[0], seed=seed) for variant in by_variant(trials) for seed in seeds]


def add_seeds(
    trials: Sequence[RunSpec],
    target: float,
    most: int,
    run: Callable[[Sequence[RunSpec]], bool],
    width: HalfWidth,
    store_folder: str | Path,
) -> Iterator[tuple[Look, float]]:
    """Add seeds until the intervals are narrow enough, and yield each look with its half-width.

    A second call repeats the same looks without rerunning finished trials.

    Args:
        trials: The trials in the sweep spec.
        target: The half-width to reach, in points.
        most: Maximum number of seeds of each variant.
        run: Runs trials, and returns whether all are finished.
        width: Returns the half-width of the intervals of trials at a level.
        store_folder: The store, in which the looks are recorded.

    Raises:
        SpecError: if earlier looks at this sweep had another `most`, on which their levels depend.
    """
    comparisons = len(trials) // len(seeds_of(trials)) - 1
    note = growth_of(trials, store_folder)
    if note is not None and note.most != most:
        raise SpecError(
            f"--max_seeds is {most}, but earlier looks at this sweep used --max_seeds {note.most}, on which their "
            "levels depend; use the same value, or another store"
        )
    looks = plan_looks(len(seeds_of(trials)), most, comparisons)
    look_count = len(note.looks) if note is not None else 0
    for number, look in enumerate(looks, 1):
        if number > look_count:  # recorded before the trials run, since other commands may show their results
            growth = asdict(Growth(most, looks[:number]))
            store.write_sealed(note_path(".grown", trials, store_folder), growth)
        current_trials = with_seeds(trials, look.seeds)
        if not run(current_trials):
            return
        half_width = width(current_trials, look.level)
        yield look, half_width
        if half_width <= target:
            return
