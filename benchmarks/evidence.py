"""Error rates of tables by simulation: python benchmarks/evidence.py [--tables 300].

Simulates studies with known effects, and analyses them with `ablation_table`. Without effects: the percentage of tables
in which an interval of a difference excludes zero (alarm), or a variant is bold; also for the paired model, and for
sign-flip tests with Holm's correction. With one variant better by 2.5 standard deviations of a seed: the percentage of
tables in which all intervals contain the true differences (coverage), and in which the variant is bold (power). Also
equivalence, and studies that add seeds until the intervals are narrow enough.

Limits: alarms of 6.5 % if the assumptions hold, else 8 %; coverage of 94 %, or 92 % if the baseline is three times as
variable as the variants; false equivalence of 5 %. The exit status is 1 if a simulated percentage exceeds its limit by
more than three standard errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pandas as pd
from measure import table
from numpy.typing import NDArray

from se_lab.report import Evidence, ablation_table
from se_lab.report.joint import compare
from se_lab.report.statistics import holm, sign_flip
from se_lab.sweep.seeds import plan_looks

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int, int], Floats]
"""Returns errors (tables, variants, seeds) in units of the standard deviation."""
EFFECT = 2.5
VARIANTS, SEEDS = (1, 4, 10, 20), (3, 5, 10)
MARGIN = 3.0


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.normal(size=shape)


def heavy_tails(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_t(3, shape) / np.sqrt(3)


def counted(images: int, share: float = 0.05) -> Draw:
    def draw(rng: np.random.Generator, *shape: int) -> Floats:
        return np.asarray(rng.binomial(images, share, shape) / np.sqrt(images * share * (1 - share)), dtype=np.float64)

    return draw


def one_variable(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw errors in which one variant has three times the standard deviation of all others."""
    errors = rng.normal(size=shape)
    errors[:, -1] *= 3
    return errors


def variable_baseline(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw errors in which the baseline has three times the standard deviation of the variants."""
    errors = rng.normal(size=shape)
    errors[:, 0] *= 3
    return errors


def shared_seeds(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw errors in which half of the variance is a seed effect shared by all variants."""
    tables, _, seeds = shape
    return np.sqrt(0.5) * (rng.normal(size=shape) + rng.normal(size=(tables, 1, seeds)))


DRAWS: dict[str, Draw] = {
    "normal": normal,
    "seeds in common": shared_seeds,
    "t, 3 df": heavy_tails,
    "359 images": counted(359),
    "10,000 images": counted(10_000),
    "one variant 3 ×": one_variable,
    "baseline 3 ×": variable_baseline,
}
ASSUMED = ("normal", "seeds in common", "10,000 images")


def records_of(errors: Floats) -> pd.DataFrame:
    """Return records of T studies (T, V, S), one metric each; variant 0 is the baseline."""
    tables, variants, seeds = errors.shape
    rows = [
        {
            "trial_id": f"{variant}-{seed}", "status": "finished", "seed": seed,
            "model.se.insertion": "standard" if variant else "none", "model.se.reduction": variant or None,
        }
        for variant in range(variants) for seed in range(seeds)
    ]  # fmt: skip
    metrics = pd.DataFrame(errors.reshape(tables, -1).T, columns=[f"table/{i}_error" for i in range(tables)])
    return pd.concat([pd.DataFrame(rows), metrics], axis=1)


def read(errors: Floats, model: str = "joint") -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return differences, half-widths and bold of the variants in tables, (T, V − 1) each."""
    metrics = [f"table/{i}_error" for i in range(len(errors))]
    data = ablation_table(records_of(errors), metric=metrics[0], columns=metrics, evidence=Evidence(model=model)).data[
        1:
    ]
    parts = [
        data[[f"{metric}:{part}" for metric in metrics]].to_numpy().T for part in ("difference", "difference:ci95")
    ]
    return parts[0], parts[1], data[[f"{metric}:best" for metric in metrics]].to_numpy().T.astype(bool)


def studies(tables: int, rng: np.random.Generator) -> Iterator[tuple[list[object], list[str]]]:
    """Yield a row for each kind of study, and a list of exceeded limits."""
    for kind, variants, seeds in product(DRAWS, VARIANTS, SEEDS):
        errors = DRAWS[kind](rng, tables, variants + 1, seeds)
        mean, half, bold = read(errors)
        paired_mean, paired_half, _ = read(errors, "paired")
        p = sign_flip(errors[:, 1:] - errors[:, :1]).p
        alarm = (np.abs(mean) > half).any(axis=1).mean()
        effects = np.zeros((variants, 1))
        effects[0] = -EFFECT
        shifted = DRAWS[kind](rng, tables, variants + 1, seeds)
        shifted[:, 1:] += effects
        shifted_mean, shifted_half, shifted_bold = read(shifted)
        coverage = (np.abs(shifted_mean - effects[:, 0]) <= shifted_half).all(axis=1).mean()
        shares = [
            alarm, bold.any(axis=1).mean(), (np.abs(paired_mean) > paired_half).any(axis=1).mean(),
            (np.apply_along_axis(holm, 1, p) <= 0.05).any(axis=1).mean(), coverage, shifted_bold[:, 0].mean(),
        ]  # fmt: skip
        wider = np.median(paired_half / half)
        most, least = 0.065 if kind in ASSUMED else 0.08, 0.92 if kind == "baseline 3 ×" else 0.94
        slack = 3 * np.sqrt(most * (1 - most) / tables)
        beyond = [f"{kind}, {variants} × {seeds}: alarms {alarm:.1%}"] if alarm > most + slack else []
        beyond += [f"{kind}, {variants} × {seeds}: coverage {coverage:.1%}"] if coverage < least - slack else []
        yield [kind, variants, seeds, *(f"{100 * share:.1f}" for share in shares), f"{wider:.2f}"], beyond


def equivalence(tables: int, rng: np.random.Generator) -> Iterator[tuple[list[object], list[str]]]:
    """Yield rates of the verdict equivalent, for true differences of the margin and of 0."""
    for variants, seeds in product((1, 4, 10), SEEDS):
        found = []
        for difference in (MARGIN, 0.0):
            errors = normal(rng, tables, variants + 1, seeds)
            errors[:, 1] += difference
            verdicts = [
                ablation_table(records_of(one[None]), metric="table/0_error", evidence=Evidence(margin=MARGIN))
                for one in errors
            ]
            found.append(np.mean([read.data["verdict"].iloc[1] == "equivalent" for read in verdicts]))
        beyond = found[0] > 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
        row = [variants, seeds, *(f"{100 * share:.1f}" for share in found)]
        yield row, [f"equivalence, {variants} × {seeds}: {found[0]:.1%}"] if beyond else []


def add_seeds(tables: int, rng: np.random.Generator) -> Iterator[tuple[list[object], list[str]]]:
    """Yield alarm rates of studies that add seeds, from 3 to 12, until intervals are narrow."""
    for variants, target in product((1, 4, 10), (1.0, 1.5, 2.5)):
        looks, rows = plan_looks(3, 12, variants), np.zeros(variants + 1, dtype=np.intp)
        alarms, seeds = np.zeros(4), []
        for errors in normal(rng, tables, variants + 1, 12):
            seen = [
                [compare(errors[:, : look.seeds], rows, rows, level=level) for level in (1 - look.level, 0.95)]
                for look in looks
            ]
            narrow = [np.nanmax(spent.half_width) <= target for spent, _ in seen]
            stop = narrow.index(True) if True in narrow else len(looks) - 1
            excluded = np.array([[found.excludes_zero.any() for found in pair] for pair in seen])
            alarms += [*excluded[stop], *excluded[: stop + 1].any(axis=0)]
            seeds.append(looks[stop].seeds)
        shares = alarms / tables
        beyond = shares[[0, 1, 2]].max() > 0.06 + 3 * np.sqrt(0.06 * 0.94 / tables)
        row = [variants, target, np.median(seeds), *(f"{100 * share:.1f}" for share in shares)]
        yield row, [f"until ± {target:g}, {variants}: {shares[:3].max():.1%}"] if beyond else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", type=int, default=300, help="Number of simulated tables of each kind.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the simulation.")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    few = max(options.tables // 4, 20)
    parts = {
        f"Shares in % of {options.tables} tables; an effect is {EFFECT} standard deviations of a seed.": (
            ["errors", "variants", "seeds", "alarm", "bold", "alarm, paired", "alarm, Holm", "coverage", "power",
             "paired / joint"], studies(options.tables, rng),
        ),
        f"Verdicts of equivalence in % of {few} tables; the margin is {MARGIN:g} standard deviations of a seed.": (
            ["variants", "seeds", "true difference = margin", "no difference"], equivalence(few, rng),
        ),
        f"Alarms in % of {few} studies without effect, looked at after each of 3 to 12 seeds.": (
            ["variants", "until ±", "seeds", "at the stop", "at the stop, 95 %", "at any look", "at any look, 95 %"],
            add_seeds(few, rng),
        ),
    }  # fmt: skip
    beyond: list[str] = []
    for title, (columns, rows) in parts.items():
        lines = []
        for row, found in rows:
            lines.append(row)
            beyond += found
        print(f"{title}\n\n{table(columns, lines)}\n", flush=True)
    print("Beyond its limit: " + ("; ".join(beyond) or "nothing") + ".")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
