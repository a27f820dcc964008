"""Nothing lost: wherever a trial is told to stop, and whatever the disk does, it goes on to the same numbers."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from se_lab.data import DataError
from se_lab.spec import DataSpec, ModelSpec, OptimSpec, SESpec, SpecError, TrainSpec
from se_lab.store import ClaimLostError, read_record, trial_folder
from se_lab.trained.load import load_trained
from se_lab.training import checkpoints, keeper
from se_lab.training.checkpoints import CheckpointError, is_whole, write_checkpoint
from se_lab.training.keeper import TrialKeeper
from se_lab.training.run import InterruptedTrialError, run
from se_lab.training.task import ClassificationTask
from tests.training.test_run import ask_to_stop, history, stop_after


@pytest.fixture
def small(quick):
    """Return a maker of specs with a net of three units."""

    def make(**sections):
        sections.setdefault("train", TrainSpec(epochs=3))
        return quick(model=ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs={"units": 1}), **sections)

    return make


@pytest.fixture
def whole(here, tmp_path):
    """Return a second store, for an undisturbed run."""
    return dataclasses.replace(here, store=str(tmp_path / "whole"))


def last(execution, spec):
    return torch.load(trial_folder(execution.store, spec.trial_id) / "last.ckpt", weights_only=True)


def same_end(spec, here, whole):
    """Tell whether a trial that goes on now ends as an undisturbed one does."""
    again, undisturbed = run(spec, here), run(spec, whole)
    states = last(here, spec)["state_dict"], last(whole, spec)["state_dict"]
    assert states[0].keys() == states[1].keys()
    return (
        again.metrics == undisturbed.metrics
        and history(here, spec) == history(whole, spec)
        and all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    )


@pytest.mark.parametrize("batches", [3, 5])
def test_moving_average_and_mixup_go_on_to_the_bit(small, here, whole, monkeypatch, batches):
    spec = small(
        data=DataSpec(batch_size=256, mixup=0.4, cutmix=0.5, val_fraction=0.2),
        train=TrainSpec(epochs=3, ema=0.8, accumulate=2, select="best"),
    )
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    assert same_end(spec, here, whole)
    state = last(here, spec)["state_dict"]
    assert any(not torch.equal(state[f"ema.module.{key[6:]}"], state[key]) for key in state if key.startswith("model."))


def test_what_is_tested_is_the_moving_average(small, here):
    spec = small(train=TrainSpec(epochs=2, ema=0.9))
    metrics = run(spec, here).metrics
    model, _ = load_trained(trial_folder(here.store, spec.trial_id))
    averaged = last(here, spec)["state_dict"]
    assert all(torch.equal(value, averaged[f"ema.module.{key}"]) for key, value in model.state_dict().items())
    from se_lab.data import create_data

    data = create_data(spec.data, spec.seed)
    images, labels = data.tensors("test")
    with torch.no_grad():
        wrong = (model(data.normalise(images)).argmax(1) != labels).double().mean()
    assert metrics["test/top1_error"] == pytest.approx(100 * float(wrong), abs=1e-6)


def test_the_moving_average_is_the_formula(small, here, monkeypatch):
    spec = small(train=TrainSpec(epochs=1, ema=0.75))
    path = []
    original = ClassificationTask.optimizer_step

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        path.append(self.model.conv1.weight.detach().double().clone())

    monkeypatch.setattr(ClassificationTask, "optimizer_step", spy)
    run(spec, here)
    average = path[0]  # timm's: the first step is taken over whole
    for weight in path[1:]:
        average = 0.75 * average + 0.25 * weight
    torch.testing.assert_close(
        last(here, spec)["state_dict"]["ema.module.conv1.weight"].double(), average, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("split", "epoch", "number"),
    [("val", 0, signal.SIGTERM), ("val", 1, signal.SIGUSR1), ("val", 2, signal.SIGHUP), ("test", 2, signal.SIGTERM)],
)
def test_a_signal_during_an_evaluation_stops_it_there(small, here, whole, monkeypatch, split, epoch, number):
    spec = small(data=DataSpec(batch_size=64), optim=OptimSpec(schedule="plateau", patience=0))
    batches = []
    step = {"val": "validation_step", "test": "test_step"}[split]
    original = getattr(ClassificationTask, step)

    def signalled(self, batch, batch_idx):
        if split == "test" or self.current_epoch == epoch:
            batches.append(1)
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, step, signalled)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    assert len(batches) == 1
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "on_before_optimizer_step", lambda *_: steps.append(1))
        run(spec, here)
    of_an_epoch = 809 // 64  # of 1,797 images half are for testing, and 90 for validation
    assert len(steps) == (2 - epoch) * of_an_epoch  # no step is taken twice
    assert same_end(spec, here, whole)


def test_checkpoints_come_by_the_clock_too(small, here, monkeypatch):
    saved = []
    monkeypatch.setattr("se_lab.training.checkpoints.write_checkpoint", lambda path, _: saved.append(path.name))
    spec = small(train=TrainSpec(epochs=1))
    run(spec, dataclasses.replace(here, checkpoint_minutes=1e-9))
    assert saved.count("last.ckpt") == 3  # after two of three steps, and at the end of the epoch


def test_no_checkpoint_holds_weights_that_are_no_numbers(small, here):
    # the first loss is fine, the step that follows it is not
    spec = small(optim=OptimSpec(lr=1e38, weight_decay=100, schedule="constant"))
    with pytest.raises(FloatingPointError, match=r"weights are nan or infinite after batch 0 of epoch 0, lr 1e\+38"):
        run(spec, dataclasses.replace(here, checkpoint_minutes=1e-9))
    folder = trial_folder(here.store, spec.trial_id)
    assert read_record(folder).error_kind == "NaN loss" and not (folder / "last.ckpt").exists()


def test_an_error_beside_a_signal_is_said(small, here, monkeypatch, capfd):
    def told_and_failing(self, *_):
        ask_to_stop(self.trainer)
        raise ConnectionResetError("a rank has gone")

    spec = small()
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", told_and_failing)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    assert read_record(trial_folder(here.store, spec.trial_id)) is None
    assert "not recorded: ConnectionResetError: a rank has gone\n" in capfd.readouterr().err


def test_a_full_disk_stops_the_trial_with_its_last_checkpoint_whole(small, here, whole, monkeypatch):
    spec = small()
    folder = trial_folder(here.store, spec.trial_id)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = TrialKeeper.on_train_epoch_end

    def fill(self, trainer, task):
        if trainer.current_epoch == 1:
            takes = (folder / "best.ckpt").stat().st_size + 8192  # the best weights still, not the optimizer's state
            resource.setrlimit(resource.RLIMIT_FSIZE, (takes, before[1]))
        original(self, trainer, task)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrialKeeper, "on_train_epoch_end", fill)
            with pytest.raises(CheckpointError, match="writing failed after"):
                run(spec, here)
        assert read_record(folder).status == "failed" and "is intact" in read_record(folder).error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_whole(folder / "last.ckpt") and last(here, spec)["epoch"] == 0
    assert not list(folder.glob(".*ckpt*"))
    assert same_end(spec, here, whole)


def test_a_checkpoint_that_does_not_read_back_replaces_none(tmp_path, monkeypatch):
    for number in (1, 2):
        write_checkpoint(tmp_path / "last.ckpt", {"number": number})
    monkeypatch.setattr(checkpoints, "is_whole", lambda _: False)
    with pytest.raises(CheckpointError, match="its checksums are wrong after writing"):
        write_checkpoint(tmp_path / "last.ckpt", {"number": 3})
    assert torch.load(tmp_path / "last.ckpt")["number"] == 2
    assert torch.load(tmp_path / "previous.ckpt")["number"] == 1


def test_a_trial_does_not_go_on_with_other_images(small, here, monkeypatch):
    spec = small()
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    from se_lab.data.memory import DigitsData

    original = DigitsData.__init__

    def other(self, *args):
        original(self, *args)
        self._digest = "0123456789abcdef"

    monkeypatch.setattr(DigitsData, "__init__", other)
    with pytest.raises(DataError, match="the images have changed"):
        run(spec, here)


def test_batch_norm_of_one_value_is_refused_before_training(quick, here):
    from se_lab.training.preflight import check_norms

    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.BatchNorm2d(1))
    with pytest.raises(SpecError, match=r"batch_size is 1, which gives batch norm 1 one value per channel"):
        check_norms(net, quick(data=DataSpec(batch_size=1)), (1, 8, 8))
    check_norms(net, quick(data=DataSpec(batch_size=2)), (1, 8, 8))
    with pytest.raises(SpecError, match="one value per channel"):
        check_norms(net, quick(data=DataSpec(batch_size=2), train=TrainSpec(accumulate=2)), (1, 8, 8))
    check_norms(torch.nn.BatchNorm2d(1), quick(data=DataSpec(batch_size=1)), (1, 8, 8))
    assert net.training


def test_a_signal_while_the_command_starts_leaves_with_75(tmp_path):
    code = "import os, signal, sys; import se_lab.cli as c\n" + (
        "import builtins; real = builtins.__import__\n"
        "def late(name, *a, **k):\n"
        "    if name == 'torch': os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(name, *a, **k)\n"
        "builtins.__import__ = late\n"
        f"sys.exit(c.main(['train', '--recipe=digits', '--store={tmp_path}', '--wandb=false']))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False).returncode == 75
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_command_leaves_with_75_and_goes_on(tmp_path, number):
    flags = ["--recipe=digits", "--train.epochs=2000", "--model.se.reduction=4", "--wandb=false", f"--store={tmp_path}"]
    process = subprocess.Popen([sys.executable, "-m", "se_lab.cli", "train", *flags], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 75
    assert "the same command resumes trial" in process.stderr.read()


def test_the_steps_of_an_epoch_are_reported_between_its_rows(small, here, monkeypatch):
    monkeypatch.setattr(keeper, "REPORT_SECONDS", 0.0)
    rows = []
    run(small(train=TrainSpec(epochs=2)), here, progress=rows.append)
    steps = [row for row in rows if "steps" in row]
    assert [row["step"] for row in steps] == list(range(1, int(steps[0]["steps"]) + 1))  # each once, up to the last
    assert [row["epoch"] for row in rows if "epoch" in row] == [0, 1] and "epoch" in rows[-1]


def test_a_resume_with_other_threads_is_recorded_as_a_segment(few, here, monkeypatch, capsys):
    spec = few()
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    record = run(spec, dataclasses.replace(here, threads=2))
    assert [(part["epoch"], part["step"], part["provenance"]["threads"]) for part in record.segments] == [
        (0, 0, "1"),
        (0, 2, "2"),
    ]
    assert f"trial {spec.trial_id} resumes, but threads was 1 and is 2" in capsys.readouterr().err
    assert run(few(seed=1), here).segments == []


def test_a_checkpoint_of_another_trial_is_refused(few, here, monkeypatch):
    one, other = few(), few(seed=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        for spec in (one, other):
            with pytest.raises(InterruptedTrialError):
                run(spec, here)
            patch.undo()
            stop_after(patch, 2)
    folders = [trial_folder(here.store, spec.trial_id) for spec in (one, other)]
    (folders[0] / "last.ckpt").replace(folders[1] / "last.ckpt")
    with pytest.raises(SpecError, match=f"checkpoint of trial {one.trial_id} in the folder of trial"):
        run(other, here)


def test_a_checkpoint_with_any_flipped_bit_in_its_directory_is_said_not_to_be_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"state_dict": {"weight": torch.ones(3)}})
    content = path.read_bytes()
    found = set()
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        for bit in (0, 3, 6):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            found.add(is_whole(path))  # it never raises
    assert found == {True, False}  # a flipped date is no damage


@pytest.mark.parametrize("damage", ["flipped", "another trial's"])
def test_best_weights_that_are_damaged_or_another_trials_are_not_tested(few, here, monkeypatch, damage):
    spec, other = (few(seed=seed, train=TrainSpec(epochs=2, select="best")) for seed in (0, 1))
    run(other, here)
    best, others = (trial_folder(here.store, trial.trial_id) / "best.ckpt" for trial in (spec, other))
    original = ClassificationTask.on_fit_end

    def spoil(self):
        content = bytearray((others if damage == "another trial's" else best).read_bytes())
        content[len(content) // 2] ^= damage == "flipped"
        best.write_bytes(content)
        original(self)

    monkeypatch.setattr(ClassificationTask, "on_fit_end", spoil)
    with pytest.raises(
        SpecError, match=r"best\.ckpt is (not a checkpoint of SE-Lab: .* corrupt|a checkpoint of trial)"
    ):
        run(spec, here)
    assert read_record(best.parent).status == "failed"


def test_a_worker_that_lost_its_trial_writes_no_predictions(few, here, monkeypatch):
    spec = few()
    folder = trial_folder(here.store, spec.trial_id)
    original = ClassificationTask.on_test_epoch_end

    def lose(self):
        newest = max(path for path in (folder / "claims").iterdir() if path.name.isdigit())
        newest.with_name(f"{int(newest.name) + 1:06d}").write_text("{}")
        (folder / "predictions.npz").write_bytes(b"the other worker's")
        original(self)

    monkeypatch.setattr(ClassificationTask, "on_test_epoch_end", lose)
    with pytest.raises(ClaimLostError):
        run(spec, here)
    assert (folder / "predictions.npz").read_bytes() == b"the other worker's" and read_record(folder) is None
