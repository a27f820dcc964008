"""se-lab sweep: seeds as many as it takes, and the best variants again with fresh seeds."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import se_lab.cli.sweep
from se_lab import store
from se_lab.cli import main
from se_lab.data import present_digest
from se_lab.spec import ExecSpec, RunSpec
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from tests.sweep.test_changes import write_images

SWEEP = {
    "name": "study",
    "program": "se-lab",
    "method": "grid",
    "command": ["${env}", "se-lab", "train", "--recipe=digits", "${args}"],
    "parameters": {
        "model.se": {"values": [{"insertion": "none"}, {"reduction": 4}, {"reduction": 8}, {"reduction": 2}]},
        "seed": {"values": [0, 1, 2]},
    },
}


def write_finished(folder, spec, error, *, execution=None, **fields):
    """Write the record of a finished trial with a test error."""
    metrics = {"test/top1_error": error}
    record = store.RunRecord(spec.trial_id, "finished", spec.flat(), execution or {}, metrics=metrics, **fields)
    store.write_record(store.trial_folder(folder, spec.trial_id), record)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a sweep's file and its store, whose trials are written down instead of trained; and who ran, call by call.

    Test errors spread by one point; the validation error of r=8 is the lowest, of r=4 the next.
    """
    path, ran = tmp_path / "study.yaml", []
    path.write_text(yaml.safe_dump(SWEEP))

    def pretend(spec, options, execution):
        ran.append([])
        for trial in spec.trials:
            folder = store.trial_folder(execution.store, trial.trial_id)
            if store.read_record(folder) is None:
                ran[-1].append(trial)
                noise = np.random.default_rng(int(trial.trial_id, 16)).normal()
                validation = (
                    {8: 1.0, 4: 2.0, 2: 3.0}[trial.model.se.reduction] if trial.model.se.insertion != "none" else 0
                )
                metrics = {"test/top1_error": 10 + noise, "val/top1_error": validation + 0.1 * trial.seed % 1}
                store.write_record(
                    folder, store.RunRecord(trial.trial_id, "finished", trial.flat(), {}, metrics=metrics)
                )
        return 0

    for name in ("_sweep_here", "_sweep_on_slurm"):
        monkeypatch.setattr(se_lab.cli.sweep, name, pretend)
    monkeypatch.setattr("se_lab.sweep.schedule.check_trials", lambda *args, **kwargs: [])
    monkeypatch.setattr("se_lab.sweep.server.start_server", lambda: None)
    return path, str(tmp_path / "store"), ran


def test_seeds_are_added_until_the_intervals_are_narrow_and_again_it_goes_on(study, capsys):
    path, folder, ran = study
    assert main(["sweep", str(path), f"--store={folder}", "--until_halfwidth=1.5", "--max_seeds=12"]) == 0
    told = capsys.readouterr().out.splitlines()
    widths = [float(line.partition("± ")[2].split()[0]) for line in told[:-1]]
    assert told[-1] == "reached ± 1.5 points"
    assert widths[-1] <= 1.5 < min(widths[:-1])
    assert [len(trials) for trials in ran] == [12] + [4] * (len(widths) - 1)  # a seed more of all four variants
    assert [trials[0].seed for trials in ran[1:]] == list(range(3, 2 + len(widths)))
    ran.clear()
    again = ["sweep", str(path), f"--store={folder}", "--until_halfwidth=1.5", "--max_seeds=12"]
    for more in ([], ["--executor=slurm"]):  # and again it goes on where it stopped, on Slurm as well
        assert main([*again, *more]) == 0
        assert capsys.readouterr().out.splitlines() == told and not any(ran)
    seeds = 1 + max(trial.seed for trial in load_records(path, folder).itertuples())
    assert seeds == len(widths) + 2  # the table of the sweep has the seeds that were added
    few = ["sweep", str(path), "--until_halfwidth=0.1", "--max_seeds=4"]
    assert main([*few, f"--store={folder}"]) == 2
    assert "earlier looks at this sweep used --max_seeds 12" in capsys.readouterr().err
    assert main([*few, f"--store={folder}-of-four"]) == 0
    assert capsys.readouterr().out.endswith("points in 4 seeds\n")


def test_what_cannot_reach_agents_is_refused_before_a_look_is_noted(study, capsys):
    path, folder, ran = study
    grow = ["sweep", str(path), f"--store={folder}", "--until_halfwidth=1.5"]
    assert main([*grow, "--wandb", "--device=cpu", "--max_seeds=12"]) == 2
    assert "--device is not passed to W&B agents" in capsys.readouterr().err
    assert main([*grow, "--max_seeds=4"]) == 0 and ran  # not bound to 12


def test_the_best_by_validation_are_confirmed_with_fresh_seeds_and_the_table_knows_who_was_chosen(study, capsys):
    path, folder, ran = study
    again = ["sweep", str(path), f"--store={folder}", "--confirm=2", "--seeds=2"]
    assert main(again) == 2
    assert "run the sweep before --confirm" in capsys.readouterr().err
    assert main(["sweep", str(path), f"--store={folder}"]) == 0
    assert main(again) == 0
    assert "se-lab table confirm:" in capsys.readouterr().err
    fresh = [(t.model.se.insertion, t.model.se.reduction, t.seed) for t in ran[-1]]
    assert fresh == [("none", 16, 1000), ("none", 16, 1001)] + [
        ("standard", r, 1000 + s) for r in (8, 4) for s in (0, 1)
    ]
    chosen = load_records(path, folder).set_index("trial_id")["chosen"]
    expected = {
        t.trial_id for t in read_sweep(path).trials if t.model.se.reduction in (4, 8) and t.model.se.insertion != "none"
    }
    assert set(chosen[chosen].index) == expected
    assert sorted(load_records(f"confirm:{path}", folder)["seed"].unique()) == [1000, 1001]
    assert main(["table", str(path), f"--store={folder}"]) == 0
    assert "selected by validation errors of these trials" in " ".join(capsys.readouterr().out.split())
    assert main(["table", f"confirm:{path}", f"--store={folder}"]) == 0
    assert "chosen" not in capsys.readouterr().out
    assert main([*again[:-2], "--confirm=1"]) == 2
    assert "a second selection would be biased" in capsys.readouterr().err
    assert main(again) == 0 and ran[-1] == []


def test_what_does_not_go_together_is_refused_before_anything_runs(study, capsys):
    path, folder, ran = study
    for flags, said in (
        (["--max_seeds=4"], "--max_seeds needs --until_halfwidth"),
        (["--until_halfwidth=0"], "it must be above 0"),
        (["--seeds=4"], "--seeds needs --confirm"),
        (["--until_halfwidth=1", "--confirm=1"], "cannot be used together"),
        (["--confirm=1", "--wandb"], "cannot be used with --wandb"),
        (["--until_halfwidth=1", "--max_seeds=2"], "--max_seeds is 2; the sweep already has 3 seeds"),
    ):
        assert main(["sweep", str(path), f"--store={folder}", *flags]) == 2
        assert said in capsys.readouterr().err
    assert not ran
    stop = {"early_terminate": {"type": "hyperband", "min_iter": 2}, "metric": {"name": "val/top1_error"}}
    path.write_text(yaml.safe_dump(SWEEP | stop))
    assert main(["sweep", str(path), f"--store={folder}", "--until_halfwidth=1"]) == 2
    assert "so remove early_terminate" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        load_records(folder)


def test_a_table_names_a_mixture_of_conditions_and_strict_refuses_it(tmp_path, capsys):
    for seed, torch in ((0, "2.13.0"), (1, "2.14.1")):
        write_finished(tmp_path, RunSpec(seed=seed), 1.0 + seed, provenance={"torch": torch, "threads": "1"})
    assert main(["table", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "under different conditions: torch: 2.13.0 (1 trial), 2.14.1 (1 trial)" in said
    assert main(["table", str(tmp_path), "--strict"]) == 2
    assert "torch: 2.13.0 (1 trial), 2.14.1 (1 trial)" in capsys.readouterr().err
    for given, status in (
        ("seed=1", 0),
        ("model.backbone=" + RunSpec().model.backbone, 2),
    ):  # the trials of the table count
        assert main(["table", str(tmp_path), "--strict", "--where", given]) == status


def test_a_table_names_a_trial_that_was_resumed_under_other_conditions(tmp_path, capsys):
    parts = [{"epoch": n, "step": n, "provenance": {"threads": str(1 + n), "timm": "1.0.31"}} for n in range(2)]
    write_finished(tmp_path, RunSpec(), 1.0, provenance=parts[1]["provenance"], segments=parts)
    assert main(["table", str(tmp_path), "--strict"]) == 2
    assert "different conditions: threads: 1 then 2 (1 trial)\n" in capsys.readouterr().err


def test_status_names_finished_trials_whose_provenance_is_not_todays(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("operators_of_status.py").write_text("FACTOR = 1")
    Path("weights.pth").write_bytes(b"one")
    write_images(Path("set"), 8)
    parameters = {
        "seed": {"values": [0, 1]},
        "data.name": {"value": "folder:set"},
        "model.pretrained": {"value": "weights.pth"},
    }
    Path("study.yaml").write_text(yaml.safe_dump({"name": "s", "method": "grid", "parameters": parameters}))
    trials = read_sweep("study.yaml").trials
    flags = ExecSpec(plugins="operators_of_status", threads=3)
    digest = present_digest(trials[0].data)
    known = store.current_provenance(trials[0], flags, images=digest, device="another machine's")
    for trial in trials:
        data = {"digest": digest, "images": {"train": 2, "val": 0, "test": 2}}
        write_finished(Path("runs"), trial, 1.0, execution=vars(flags), provenance=known, data=data)
    assert main(["status", "study.yaml", "--store=runs"]) == 0
    assert capsys.readouterr().err == ""
    Path("operators_of_status.py").write_text("FACTOR = 2")
    Path("weights.pth").write_bytes(b"two")
    write_images(Path("set"), 24)
    assert main(["status", "study.yaml", "--store=runs"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[3] for line in said) == ["images", "plugin", "weights"]
    assert all(line.endswith(f"trials {trials[0].trial_id}, {trials[1].trial_id}") for line in said)


def test_trials_of_a_sweep_carry_its_name_as_their_wandb_group():
    from se_lab.cli.sweep import _parse_sweep

    file = "sweeps/demo.yaml"
    _, execution, spec = _parse_sweep([file])
    assert execution.group == spec.name
    assert _parse_sweep([file, "--group=mine", "--tags=[a, b]"])[1].group == "mine"
