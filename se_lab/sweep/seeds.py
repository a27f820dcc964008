"""Add seeds until a comparison is precise enough: look after every seed, at levels that together keep 5 %.

A table that is looked at after every seed, and read the first time it shows something, raises false alarms in far more
than 5 % of studies. Here each look has a level of its own (Lan and DeMets 1983, with the spending function that is
close to Pocock's boundaries), so that the simultaneous intervals of all looks hold together. The store remembers the
looks, so that the sweep's tables have all of its seeds and the level of the last look:

<store>/.grown/<hash of the sweep's own trials>.json
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
"""The largest half-width, in points, of the simultaneous intervals against the baseline, of some trials at a level."""


@dataclass(frozen=True)
class Look:
    """A point at which the intervals are looked at."""

    seeds: int
    """Seeds of each variant."""
    level: float
    """The error rate of the look's simultaneous intervals, such as 0.02 for intervals of 98 %."""


@dataclass(frozen=True)
class Growth:
    """How seeds were added to a sweep."""

    most: int
    """Seeds of each variant at most; the levels of the looks depend on it."""
    looks: list[Look]
    """The looks that were begun."""


def growth_of(trials: Sequence[RunSpec], store_folder: str | Path) -> Growth | None:
    """Return how seeds were added to a sweep with these trials, if they were."""
    path = note_path(".grown", trials, store_folder)
    try:
        values = store.read_sealed(path)
        return Growth(values["most"], [Look(**look) for look in values["looks"]])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{path} is no note of added seeds: {error}") from None


def grown(trials: Sequence[RunSpec], store_folder: str | Path) -> list[RunSpec]:
    """Return the trials of a sweep with the seeds that were added to it."""
    growth = growth_of(trials, store_folder)
    return list(trials) if growth is None else with_seeds(trials, growth.looks[-1].seeds)


def note_path(kind: str, trials: Sequence[RunSpec], store_folder: str | Path) -> Path:
    """Return the file of a store with a note on the sweep of these trials."""
    ids = "".join(sorted(trial.trial_id for trial in trials))
    return Path(store_folder, kind, f"{hashlib.sha256(ids.encode()).hexdigest()[:12]}.json")


def plan_looks(start: int, most: int, comparisons: int, alpha: float = ALPHA) -> list[Look]:
    """Return a look after each number of seeds from `start` to `most`, whose levels keep `alpha` overall.

    Args:
        start: Seeds of each variant at the first look.
        most: Seeds of each variant at the last look.
        comparisons: Number of variants compared with the baseline. The more there are, the less the looks at their
            largest difference resemble each other; so each comparison spends its own share of `alpha`.
        alpha: The error rate of all looks together.

    Raises:
        SpecError: if there are fewer seeds at most than at the start.
    """
    if most < start:
        raise SpecError(f"--max_seeds is {most}; the sweep already has {start} seeds")
    counts = range(start, most + 1)
    levels = look_levels([count / most for count in counts], alpha / comparisons)
    return [Look(count, comparisons * level) for count, level in zip(counts, levels, strict=True)]


def check_compared(trials: Sequence[RunSpec]) -> None:
    """Raise SpecError unless each backbone has a variant without units, the baseline, and another."""
    for backbone in dict.fromkeys(trial.model.backbone for trial in trials):
        insertions = [trial.model.se.insertion == "none" for trial in trials if trial.model.backbone == backbone]
        if all(insertions) or not any(insertions):
            missing = "no variant with units" if all(insertions) else "no variant without units (insertion none)"
            raise SpecError(f"--until_halfwidth compares variants with the baseline, and {backbone} has {missing}")


def look_levels(times: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the two-sided level of each look, such that no effect crosses any of them with probability 1 - `alpha`.

    The level spent by time t is alpha * log(1 + (e - 1) t). The levels follow from the distribution of a Brownian
    motion that has crossed no bound so far, integrated numerically (Armitage, McPherson and Rowe 1969).

    Args:
        times: The share of the largest number of seeds at each look, increasing, the last being 1.
        alpha: The error rate of all looks together.
    """
    grid = np.linspace(-6.0, 6.0, 2401)  # of the motion's value at a look
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
    """Return the trials grouped by variant: those of a group differ only in the seed."""
    variants: dict[str, list[RunSpec]] = {}
    for trial in trials:
        variants.setdefault(dataclasses.replace(trial, seed=0).trial_id, []).append(trial)
    return list(variants.values())


def seeds_of(trials: Sequence[RunSpec]) -> list[int]:
    """Return the seeds of a sweep, in its order, which must be the same for every variant.

    Raises:
        SpecError: if variants have different seeds, or there is only one seed.
    """
    seed_lists = [[trial.seed for trial in variant] for variant in by_variant(trials)]
    if not seed_lists or any(sorted(seeds) != sorted(seed_lists[0]) for seeds in seed_lists):
        raise SpecError("adding seeds needs a grid in which every variant has the same seeds")
    if len(seed_lists[0]) < 2:
        raise SpecError("adding seeds needs a sweep of at least 2 seeds: one says nothing of the spread")
    return seed_lists[0]


def with_seeds(trials: Sequence[RunSpec], count: int) -> list[RunSpec]:
    """Return the trials of every variant with `count` seeds: the sweep's own first, then the next free numbers."""
    sweep_seeds = seeds_of(trials)
    seeds = [*sweep_seeds, *range(max(sweep_seeds) + 1, max(sweep_seeds) + 1 + count - len(sweep_seeds))]
    return [dataclasses.replace(variant[0], seed=seed) for variant in by_variant(trials) for seed in seeds]


def until_narrow(
    trials: Sequence[RunSpec],
    target: float,
    most: int,
    run: Callable[[Sequence[RunSpec]], bool],
    width: HalfWidth,
    store_folder: str | Path,
) -> Iterator[tuple[Look, float]]:
    """Add seeds, the same for all variants, until the intervals are narrow enough; yield each look and its half-width.

    A second call takes the same looks over the same trials, and does not rerun finished trials.

    Args:
        trials: The sweep's own trials.
        target: The half-width to reach, in points.
        most: Seeds of each variant at most.
        run: Runs trials; returns whether all are finished.
        width: The half-width of some trials' intervals at a level.
        store_folder: The store, which remembers the looks.

    Raises:
        SpecError: if earlier looks at this sweep had another `most`, on which their levels depend.
    """
    comparisons = len(trials) // len(seeds_of(trials)) - 1
    note = growth_of(trials, store_folder)
    if note is not None and note.most != most:
        raise SpecError(
            f"--max_seeds is {most}; this sweep has been looked at with --max_seeds {note.most}, on which the levels "
            "of its looks depend: give that again, or use another store"
        )
    looks = plan_looks(len(seeds_of(trials)), most, comparisons)
    look_count = len(note.looks) if note is not None else 0
    for number, look in enumerate(looks, 1):
        if number > look_count:  # noted before its trials run, since any command may show their results
            growth = asdict(Growth(most, looks[:number]))
            store.write_sealed(note_path(".grown", trials, store_folder), growth)
        current_trials = with_seeds(trials, look.seeds)
        if not run(current_trials):
            return
        half_width = width(current_trials, look.level)
        yield look, half_width
        if half_width <= target:
            return
