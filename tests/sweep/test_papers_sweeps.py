"""The specs in sweeps/: they are the SE paper's tables, and what tables share is one trial."""

from pathlib import Path

import pytest
import yaml

from se_lab.spec import UNIT_FIELDS, SESpec
from se_lab.spec.flags import parse_trial
from se_lab.sweep.grammar import fixed_flags, points_of, read_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"
PUBLISHED = yaml.safe_load((Path(__file__).parents[2] / "se_lab/report/published.yaml").read_text())
ABLATIONS = ["reduction", "squeeze", "excitation", "stage", "insertion", "conv3x3", "no_squeeze"]
PLAIN, STANDARD = SESpec(insertion="none"), SESpec()


@pytest.fixture(scope="module")
def read():
    """Return a reader of the shipped specs that reads each once."""
    return {path.stem: read_sweep(path) for path in SWEEPS.glob("*.yaml")}.__getitem__


@pytest.mark.parametrize("twin", ["", "_cifar"])
def test_the_baseline_and_the_standard_net_are_the_same_trials_in_every_ablation(read, twin):
    for se in (PLAIN, STANDARD):
        for seed in (0, 1, 2):
            ids = {
                name: [t.trial_id for t in read(name + twin).trials if (t.model.se, t.seed) == (se, seed)]
                for name in ABLATIONS
            }
            assert all(len(found) == 1 for found in ids.values()), ids
            assert len({found[0] for found in ids.values()}) == 1, ids
    if twin:
        ours = {t.trial_id for t in read("backbones_cifar").trials}
        shared = {t.trial_id for t in read("reduction_cifar").trials if t.model.se in (PLAIN, STANDARD)}
        assert len(shared) == 6 and shared <= ours


@pytest.mark.parametrize("twin", ["", "_cifar"])
@pytest.mark.parametrize(
    ("name", "table", "field", "more"),
    [
        ("reduction", 10, "reduction", []),
        ("squeeze", 11, "squeeze", []),
        ("excitation", 12, "excitation", []),
        ("insertion", 14, "insertion", ["none"]),
        ("conv3x3", 15, "insertion", ["none"]),
        ("no_squeeze", 16, "squeeze", []),
    ],
)
def test_an_ablation_has_the_rows_of_the_papers_table(read, name, table, field, more, twin):
    sweep = read(name + twin)
    (rows,) = (PUBLISHED[key]["rows"] for key in PUBLISHED if key.startswith(f"table_{table}_"))
    expected = {row for row in rows if row not in ("original", "ResNet-50")} | set(more)
    units = [t.model.se for t in sweep.trials if t.model.se != PLAIN or field == "insertion"]
    assert {getattr(se, field) for se in units} == expected
    assert f"Table {table}" in sweep.description
    assert {t.seed for t in sweep.trials} == {0, 1, 2}


def test_stages_are_the_papers_and_the_one_it_left_out(read):
    stages = {t.model.se.stages for t in read("stage").trials if t.model.se != PLAIN}
    assert stages == {(2,), (3,), (4,), (5,), "all"}
    assert {t.model.se.stages for t in read("stage_cifar").trials if t.model.se != PLAIN} == {(2,), (3,), (4,), "all"}
    assert "Table 13" in read("stage").description


def test_every_backbone_of_tables_2_and_3_stands_with_and_without_units(read):
    counts = {}
    for name in ("backbones", "backbones_299", "backbones_mobile"):
        for trial in read(name).trials:
            counts.setdefault(trial.model.backbone, []).append(trial.model.se.insertion)
    assert len(counts) == len(PUBLISHED["table_2_imagenet"]["rows"]) + len(PUBLISHED["table_3_mobile"]["rows"])
    assert all(sorted(insertions) == ["none"] * 3 + ["standard"] * 3 for insertions in counts.values())


def test_every_unit_is_compared_at_the_standard_place_with_three_seeds(read):
    standard = {(t.model.se.unit, t.seed) for t in read("units").trials if t.model.se.insertion == "standard"}
    assert standard == {(unit, seed) for unit in UNIT_FIELDS for seed in (0, 1, 2)}
    baseline = {t.trial_id for t in read("reduction").trials if t.model.se in (PLAIN, STANDARD)}
    assert baseline <= {t.trial_id for t in read("units").trials}


def test_the_recipes_are_the_papers(read):
    for name in ABLATIONS:  # section 6: no biases, rate 0.1, dropped at 125, 200 and 250 of 270 epochs
        for trial in read(name).trials:
            assert (trial.data.name, trial.optim.lr, trial.train.epochs) == ("imagenet", 0.1, 270)
            assert trial.optim.milestones == (125, 200, 250) and not trial.model.se.bias
    for trial in read("backbones").trials:  # section 5.1, and biases as in the authors' released nets
        assert (trial.optim.lr, trial.data.batch_size, trial.train.epochs) == (0.6, 1024, 100)
        assert trial.model.se.bias or trial.model.se.insertion == "none"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_an_agent_hands_over_is_the_trial_that_runs_here(path):
    spec = yaml.safe_load(path.read_text())
    for point, trial in zip(points_of(spec, 0), read_sweep(path).trials, strict=True):
        if trial.seed == 0:
            handed = [f"--{name}={value}" for name, value in sorted(point.items())]
            assert parse_trial([*fixed_flags(spec), *handed])[0] == trial
