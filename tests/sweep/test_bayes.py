"""A search that looks at earlier trials: what it proposes is on disk, and what came of it too."""

import dataclasses
import json
import multiprocessing
from pathlib import Path

import pytest
import yaml

from se_lab import store
from se_lab.cli import main
from se_lab.spec import SpecError
from se_lab.sweep import bayes
from se_lab.sweep.grammar import problems, read_sweep
from se_lab.sweep.records import load_records
from se_lab.sweep.schedule import Rules, execute

pytest.importorskip("optuna")
METRIC = {"name": "val/loss", "goal": "minimize"}
SMALL = "--model.kwargs={units: 1}"
AXES = {
    "optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    "model.se": {"values": [{"insertion": "none"}, {"reduction": 4}]},
    "data.batch_size": {"value": 512},
}


def spec(**changes):
    command = ["${env}", "se-lab", "train", "--recipe=digits", "--train.epochs=1", SMALL, "${args}"]
    whole = {"program": "se-lab", "method": "bayes", "metric": METRIC, "run_cap": 3, "command": command}
    return {key: value for key, value in (whole | {"parameters": AXES} | changes).items() if value is not None}


@pytest.fixture
def read(tmp_path):
    """Return a maker of sweeps, as they stand in the test's store."""

    def make(seed=0, **changes):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(spec(**changes)))
        return read_sweep(path, seed=seed, store_folder=tmp_path / "store")

    return make


def pretend(folder, trial, value, status="finished"):
    """Leave what a trial leaves that came to a validation loss."""
    there = store.trial_folder(folder, trial.trial_id)
    store.write_record(there, store.RunRecord(trial.trial_id, status, trial.flat(), {}))
    (there / "metrics.csv").write_text(f"epoch,val/loss\n0,{value + 1}\n1,{value}\n2,{value + 0.5}\n")


def bowl(trial):
    """Lowest at a rate of 0.03 with SE units."""
    import math

    return (math.log10(trial.optim.lr) + 1.5) ** 2 + (0.5 if trial.model.se.insertion == "none" else 0)


def test_it_finds_the_bottom_of_a_bowl_sooner_than_chance(read, tmp_path):
    search = read(run_cap=16).search
    while (trial := search.propose(tmp_path / "store")) is not None:
        pretend(tmp_path / "store", trial, bowl(trial))
    trials = search.proposed_trials(tmp_path / "store")
    assert len({trial.trial_id for trial in trials}) == 16
    late = sorted(bowl(trial) for trial in trials[8:])
    # a draw at random is below 0.1 with a probability of 0.5 * 0.16
    assert sum(value < 0.1 for value in late) >= 4, late


def test_a_proposal_follows_from_seed_number_and_what_is_known(read, tmp_path):
    stores = [tmp_path / name for name in ("store", "other", "later")]
    for folder in stores[:2]:
        for _ in range(7):
            pretend(
                folder, trial := read().search.__class__(**vars(read(run_cap=9).search)).propose(folder), bowl(trial)
            )
    first, second = (read(run_cap=9).search.proposed_trials(folder) for folder in stores[:2])
    assert first == second
    assert read(seed=1, run_cap=9).search.propose(stores[2]) != first[0]
    # another seed is another search, which shares the store and not the list
    assert read(seed=1, run_cap=9).search.proposed_trials(stores[0]) == []


def test_many_processes_share_one_list(read, tmp_path):
    search = read(run_cap=12).search
    context = multiprocessing.get_context("fork")
    handed_out = context.SimpleQueue()

    def propose_all():
        while (trial := search.propose(tmp_path / "store")) is not None:
            handed_out.put(trial.trial_id)

    processes = [context.Process(target=propose_all) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    trials = search.proposed_trials(tmp_path / "store")
    got = [handed_out.get() for _ in range(12)]
    assert handed_out.empty() and sorted(got) == sorted(trial.trial_id for trial in trials)
    assert len(set(got)) == 12


def test_failed_trials_count_as_the_worst_and_pending_ones_as_pending(read, tmp_path):
    search = read(run_cap=9).search
    folder = tmp_path / "store"
    trials = [search.propose(folder) for _ in range(4)]
    pretend(folder, trials[0], 2.0)
    pretend(folder, trials[1], 1.0, status="stopped")
    pretend(folder, trials[2], 0.1, status="failed")
    values = [search._value(folder, trial) for trial in trials]
    assert values == [2.0, 1.0, "failed", "running"]  # the best epoch, as W&B takes it
    assert bayes._impute(values, 2.0) == [2.0, 1.0, 2.0, None]
    best = dataclasses.replace(search, metric=dataclasses.replace(search.metric, impute="best"))
    assert best._value(folder, trials[2]) == 0.1


def test_a_target_that_is_reached_or_a_space_that_is_used_up_ends_it(read, tmp_path):
    folder = tmp_path / "store"
    search = read(run_cap=9, metric=METRIC | {"target": 1.0}).search
    pretend(folder, search.propose(folder), 1.5)
    pretend(folder, search.propose(folder), 0.9)
    assert search.propose(folder) is None
    small = read(run_cap=9, parameters={"optim.lr": {"values": [0.3, 0.4]}}).search
    assert {small.propose(folder).optim.lr, small.propose(folder).optim.lr} == {0.3, 0.4}
    assert small.propose(folder) is None


def test_a_sweep_goes_on_where_it_stopped_to_the_same_trials(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SE_LAB_STORE", str(tmp_path / "store"))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec(run_cap=2)))
    assert main(["sweep", str(path), "--wandb=false"]) == 0
    told = capsys.readouterr()
    assert "2 finished" in told.out and "Optuna" in told.err
    path.write_text(yaml.safe_dump(spec(run_cap=3)))  # a higher cap is the same search
    assert main(["sweep", str(path), "--wandb=false"]) == 0
    assert "1 finished, 2 finished before" in capsys.readouterr().out
    table = load_records(path)
    assert table["status"].tolist() == ["finished"] * 3
    files = sorted((tmp_path / "store" / ".searches").glob("*/*.json"))
    assert [file.name for file in files] == ["000001.json", "000002.json", "000003.json"]
    assert [json.loads(file.read_text())["spec"]["optim.lr"] for file in files] == table["optim.lr"].tolist()


def test_what_a_search_has_yet_to_propose_is_told(read, tmp_path, capsys):
    search = read(run_cap=3).search
    path, here = tmp_path / "sweep.yaml", f"--store={tmp_path / 'store'}"
    assert main(["profile", f"--sweep={path}", here, "--format=json"]) == 0
    told = capsys.readouterr()
    assert "0 of 3 trials are proposed" in told.err and "the centre and the bounds of the search space" in told.err
    assert {row["model.se.insertion"] for row in json.loads(told.out)} == {"none", "standard"}
    assert main(["status", str(path), here]) == 0
    assert capsys.readouterr().out == "sweep: 3 of 3 not yet proposed\n"
    trial = search.propose(tmp_path / "store")
    pretend(tmp_path / "store", trial, 1.0)
    assert main(["status", str(path), here]) == 0
    assert capsys.readouterr().out.endswith("sweep: 1 finished, 2 of 3 not yet proposed\n")
    assert main(["status", str(path), here, "--format=json"]) == 0
    told = capsys.readouterr()
    assert [row["status"] for row in json.loads(told.out)] == ["finished"] and "2 of 3 not yet proposed" in told.err
    assert main(["profile", f"--sweep={path}", here, "--format=json"]) == 0
    told = capsys.readouterr()
    assert "1 of 3 trials are proposed" in told.err and "--sweep_seed 0" in told.err
    assert [row["trial_id"] for row in json.loads(told.out)] == [trial.trial_id]
    assert main(["profile", f"--sweep={path}", here, "--sweep_seed=1"]) == 0
    assert "0 of 3 trials are proposed" in capsys.readouterr().err


def test_a_search_of_another_seed_is_found_by_its_seed(tmp_path, capsys):
    path, folder = tmp_path / "sweep.yaml", str(tmp_path / "store")
    path.write_text(yaml.safe_dump(spec(run_cap=1)))
    assert main(["sweep", str(path), "--wandb=false", "--store", folder, "--sweep_seed=5"]) == 0
    assert load_records(path, folder).empty
    assert load_records(path, folder, sweep_seed=5)["status"].tolist() == ["finished"]
    assert main(["table", str(path), "--store", folder, "--sweep_seed=5"]) == 0
    capsys.readouterr()
    # its checkpoints are wanted, wherever the store is
    for seeds, trials in (["0"], 1), (["0", "5"], 0):
        assert main(["gc", folder, "--specs", str(path), "--paths", "--sweep_seed", *seeds]) == 0
        assert capsys.readouterr().out.count("last.ckpt") == trials


def test_two_workers_take_what_another_process_has_left(read, tmp_path, here):
    sweep = read(run_cap=3)
    left = sweep.search.propose(here.store)  # by a process that died before it ran
    outcomes = execute([], here, 2, lambda event: None, Rules(search=sweep.search))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert outcomes[0].trial == left


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"metric": None}, "metric", "bayes needs one"),
        ({"metric": {"name": "test/top1_error"}}, "metric.name", "test images are for reporting only"),
        ({"metric": METRIC | {"impute": "bst"}}, "metric.impute", "worst, best or latest"),
        ({"metric": METRIC | {"target": "low"}}, "metric.target", "a number"),
        ({"run_cap": None}, "run_cap", "needs the number of its trials"),
        ({"parameters": AXES | {"seed": {"values": [0, 1]}}}, "parameters.seed", "--confirm 3 --seeds 5"),
    ],
)
def test_what_a_search_cannot_do_without_is_asked_for(changes, where, said):
    assert [(f.where, said in str(f)) for f in problems(spec(**changes))] == [(where, True)]


def test_ends_of_the_space_that_no_trial_can_have_are_told_first(read):
    with pytest.raises(SpecError, match=r"optim.momentum is 1\.5"):
        read(parameters={"optim.momentum": {"min": 0.5, "max": 1.5}})


def test_without_optuna_it_says_what_to_install(read, here, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    sweep = read()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpecError, match=r"se-lab\[bayes\]"):
        execute([], here, 1, lambda event: None, Rules(search=sweep.search))
    assert not Path(here.store).exists()
