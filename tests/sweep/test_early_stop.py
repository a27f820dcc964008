"""Hyperband: what W&B's engine would stop is stopped, and nothing else."""

import csv
import dataclasses
import json
import math
import random

import pytest
import yaml

from se_lab import store
from se_lab.spec import SpecError
from se_lab.sweep.early_stop import Hyperband, Metric, hyperband_of
from se_lab.sweep.grammar import metric_of, problems, read_sweep
from se_lab.sweep.records import load_records
from se_lab.sweep.schedule import Rules, check_trials, execute

METRIC = {"name": "val/top1_error", "goal": "minimize"}
SETTINGS = [
    {"min_iter": 1},
    {"min_iter": 2, "eta": 2},
    {"min_iter": 1, "eta": 1.5, "strict": False},
    {"max_iter": 12, "s": 2},
    {"max_iter": 12, "s": 3, "eta": 2, "strict": False},
    {"max_iter": 2, "s": 5, "eta": 1.3},
    {"min_iter": 3, "max_iter": 9, "s": 1},
]


def histories(seed):
    """Return runs of many lengths: with ties, and with values that are no number."""
    draw = random.Random(seed)
    values = [*range(6), *(draw.uniform(0, 6) for _ in range(6))]
    runs = [[draw.choice(values) for _ in range(draw.randrange(13))] for _ in range(draw.randrange(1, 12))]
    return [[float("nan") if draw.random() < 0.05 else value for value in run] for run in runs]


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_the_engine_stops_the_same_runs(engine, tmp_path, goal):
    metric, cases = METRIC | {"goal": goal}, []
    for setting in SETTINGS:
        for seed in range(25):
            runs = [("running" if number % 4 else "finished", run) for number, run in enumerate(histories(seed))]
            spec = {"method": "grid", "metric": metric, "early_terminate": {"type": "hyperband"} | setting}
            cases.append({"stop": spec | {"parameters": {"seed": {"values": [0]}}}, "runs": runs})
    theirs = engine(cases)
    assert sum(map(len, theirs)) > 50, "there is something to stop"
    for case, stopped in zip(cases, theirs, strict=True):
        rule = hyperband_of(case["stop"], metric_of(case["stop"]))
        known = [write_metrics(tmp_path, run, rule.metric) for _, run in case["runs"]]
        ours = [
            number
            for number, (state, _) in enumerate(case["runs"])
            if state == "running" and rule.stops(known[number], [run for run in known if run])
        ]
        assert ours == stopped, case


def write_metrics(folder, run, metric):
    """Write a run as a trial would, and read it back."""
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", metric.name])
        writer.writerows([epoch, value] for epoch, value in enumerate(run))
    return metric.history(folder)


def test_what_is_no_number_is_no_epoch_and_more_is_better_when_it_is_maximised(tmp_path):
    assert write_metrics(tmp_path, [3, math.nan, math.inf, 1], Metric("val/loss")) == [3, 1]
    assert write_metrics(tmp_path, [3, 1], Metric("val/loss", maximize=True)) == [-3, -1]
    assert Metric("val/loss").history(tmp_path / "none") == []


WRONG = [
    {"type": "hyperbnd", "min_iter": 1},
    {"type": "hyperband"},
    {"type": "hyperband", "max_iter": 9},
    {"type": "hyperband", "min_iter": 0},
    {"type": "hyperband", "min_iter": 2, "eta": 1},
    {"type": "hyperband", "min_iter": 2, "strict": "yes"},
    {"type": "hyperband", "min_iter": 2, "minitr": 3},
]


def test_what_the_engines_schema_refuses_is_refused(engine):
    whole = {"program": "se-lab", "method": "grid", "parameters": {"seed": {"values": [0]}}, "metric": METRIC}
    specs = [whole | {"early_terminate": wrong} for wrong in WRONG]
    for spec, violations in zip(specs, engine([{"spec": spec} for spec in specs]), strict=True):
        assert violations and list(problems(spec)), spec
    assert list(problems(whole | {"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 3}})), (
        "there are no bands"
    )
    assert not list(problems(whole | {"early_terminate": {"type": "hyperband", "min_iter": 3}}))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"name": "test/top1_error"}, "test images are for reporting only"),
        ({"name": "train/loss"}, "allowed are val/loss"),
        (None, "early_terminate needs one"),
    ],
)
def test_it_looks_at_validation_images_only(tmp_path, metric, said):
    spec = sweep_spec(early_terminate={"type": "hyperband", "min_iter": 1}, metric=metric)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in spec.items() if value is not None}))
    with pytest.raises(SpecError, match=said):
        read_sweep(path)


def sweep_spec(rates=(0.1, 1e-6), epochs=4, **changes):
    flags = ["--recipe=digits", f"--train.epochs={epochs}", "--data.batch_size=64", "--model.kwargs={units: 1}"]
    parameters = {"optim.lr": {"values": list(rates)}}
    command = ["${env}", "se-lab", "train", *flags, "${args}"]
    return {"program": "se-lab", "method": "grid", "command": command, "parameters": parameters} | changes


def test_a_hopeless_trial_is_stopped_keeps_what_it_had_and_is_not_run_again(tmp_path, here):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_spec(early_terminate={"type": "hyperband", "min_iter": 2}, metric=METRIC)))
    sweep = read_sweep(path)
    seen = []
    outcomes = execute(sweep.trials, here, 1, seen.append, Rules(early_stop=sweep.early_stop))
    assert [outcome.status for outcome in outcomes] == ["finished", "stopped"]
    hopeless = sweep.trials[1]
    folder = store.trial_folder(here.store, hopeless.trial_id)
    record = json.loads((folder / "record.json").read_text())
    last = list(csv.DictReader((folder / "metrics.csv").open(newline="")))
    assert len(last) == 2 and record["status"] == "stopped" and record["error"] is None
    assert record["metrics"]["val/top1_error"] == float(last[-1]["val/top1_error"])
    assert not [key for key in record["metrics"] if key.startswith("test/")]
    assert load_records(path, here.store)["status"].tolist() == ["finished", "stopped"]
    again = execute(sweep.trials, here, 1, seen.append, Rules(early_stop=sweep.early_stop))
    assert [outcome.status for outcome in again] == ["skipped"] * 2
    # a sweep that lets every trial run to its end takes it from where it stands
    rows = []
    outcomes = execute([hopeless], here, 1, lambda event: rows.append(event.row.get("epoch")))
    assert outcomes[0].status == "finished" and [row for row in rows if row is not None] == [2, 3]


@pytest.mark.slow
def test_a_hopeless_trial_of_two_ranks_is_stopped_on_both(tmp_path, here):
    path = tmp_path / "sweep.yaml"
    spec = sweep_spec(early_terminate={"type": "hyperband", "min_iter": 2}, metric=METRIC)
    spec["command"][-1:] = ["--train.devices=2", "${args}"]
    path.write_text(yaml.safe_dump(spec))
    sweep, rows = read_sweep(path), []
    outcomes = execute(sweep.trials, here, 1, rows.append, Rules(early_stop=sweep.early_stop))
    assert [outcome.status for outcome in outcomes] == ["finished", "stopped"]
    hopeless = store.trial_folder(here.store, sweep.trials[1].trial_id)
    record = store.read_record(hopeless)
    assert (record.status, record.error) == ("stopped", None)
    assert not [key for key in record.metrics if key.startswith("test/")]
    assert [int(row["epoch"]) for row in csv.DictReader((hopeless / "metrics.csv").open(newline=""))] == [0, 1]
    assert [e.row["epoch"] for e in rows if "epoch" in e.row and e.trial == sweep.trials[1]] == [0, 1]
    assert store.holder_of(hopeless) is None
    # and goes on where it stopped, with both, in a sweep that gives none up
    (outcome,) = execute(sweep.trials[1:], here, 1, rows.append)
    assert outcome.status == "finished"
    assert [int(row["epoch"]) for row in csv.DictReader((hopeless / "metrics.csv").open(newline=""))] == [0, 1, 2, 3]


def test_without_validation_images_it_is_refused_before_anything_runs(tmp_path):
    spec = sweep_spec(early_terminate={"type": "hyperband", "min_iter": 2}, metric=METRIC)
    spec["command"].insert(-1, "--data.val_fraction=0")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec))
    sweep = read_sweep(path)
    with pytest.raises(SpecError, match=r"early_terminate on val/top1_error needs validation images"):
        check_trials(sweep.trials, validation_use=sweep.validation_use)
    check_trials(sweep.trials)


def test_the_best_of_a_run_saves_it_unless_it_is_strict():
    rule = Hyperband(Metric("val/loss"), bands=(2,), eta=2, strict=True)
    histories = [[1, 2.0], [0, 3.0]]
    assert rule.stops(histories[1], histories) is False  # the threshold is the larger of two
    histories.append([9, 1.0])
    assert rule.stops(histories[1], histories) is True
    assert dataclasses.replace(rule, strict=False).stops(histories[1], histories) is False
