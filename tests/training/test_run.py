"""Training: keyed randomness, resuming to the bit, records."""

import contextlib
import csv
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from se_lab.data import create_data
from se_lab.spec import DataSpec, ExecSpec, ModelSpec, OptimSpec, SESpec, SpecError, TrainSpec
from se_lab.store import read_record, trial_folder
from se_lab.training import run as train
from se_lab.training.keeper import TrialKeeper
from se_lab.training.metrics import MeanLoss
from se_lab.training.run import InterruptedTrialError, run
from se_lab.training.task import ClassificationTask
from se_lab.units.model import create_model

VARIANTS = [
    SESpec(insertion="none"),
    SESpec(reduction=4),
    SESpec(reduction=2, squeeze="none", excitation="tanh"),
    SESpec(insertion="pre", stages=(2,)),
    SESpec(insertion="identity", bias=True),
]


def ask_to_stop(trainer):
    """Ask for a stop as a signal does."""
    (keeper,) = (one for one in trainer.callbacks if isinstance(one, TrialKeeper))
    keeper.stop.asked = True


def stop_after(monkeypatch, batches):
    """Ask the trial to stop after this many batches, as a signal does."""
    handed_out = []
    original = TrialKeeper.on_train_batch_end

    def counting(self, *args):
        handed_out.append(1)
        self.stop.asked |= len(handed_out) == batches
        original(self, *args)

    monkeypatch.setattr(TrialKeeper, "on_train_batch_end", counting)


def class_folders(root, classes=5, images=8):
    """Make train/ and val/ of a few random images a class, and return the spec that reads them."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return DataSpec(f"folder:{root}", image_size=16, batch_size=8, val_fraction=0.25)


def history(execution, spec):
    with (trial_folder(execution.store, spec.trial_id) / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


def test_variants_of_one_seed_start_from_equal_backbone_weights():
    plain = create_model(ModelSpec("cifar_resnet20", VARIANTS[0]), 10, 1, seed=5).state_dict()
    for se in VARIANTS[1:]:
        state = create_model(ModelSpec("cifar_resnet20", se), 10, 1, seed=5).state_dict()
        assert all(torch.equal(state[key], plain[key]) for key in plain)
    other = create_model(ModelSpec("cifar_resnet20", VARIANTS[0]), 10, 1, seed=6).state_dict()
    assert not torch.equal(other["conv1.weight"], plain["conv1.weight"])


def test_equal_sites_start_from_equal_units_wherever_else_there_are_units():
    every = create_model(ModelSpec("cifar_resnet20", SESpec(reduction=4)), 10, 1, seed=5)
    some = create_model(ModelSpec("cifar_resnet20", SESpec(reduction=4, stages=(3,))), 10, 1, seed=5)
    paths = {site.name: site.path for site in every.se_sites}
    for site in some.se_sites:
        assert torch.equal(
            some.get_submodule(site.path).reduce.weight, every.get_submodule(paths[site.name]).reduce.weight
        )


def test_variants_of_one_seed_see_equal_batches(quick, here, monkeypatch):
    seen = []
    original = ClassificationTask.training_step

    def spy(self, batch, batch_idx):
        seen.append(hash(batch[0].numpy().tobytes()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", spy)
    streams = []
    for se in VARIANTS[:3]:
        seen.clear()
        run(quick(se), here)
        streams.append(tuple(seen))
    assert len(set(streams)) == 1 and len(streams[0]) == 2 * (809 // 256)


def test_two_runs_of_one_spec_give_equal_metrics(quick, here, tmp_path):
    spec = quick(
        model=ModelSpec(
            "cifar_resnet20", SESpec(reduction=4), kwargs={"units": 1, "drop_path_rate": 0.2, "drop_rate": 0.2}
        )
    )
    first = run(spec, here)
    second = run(spec, dataclasses.replace(here, store=str(tmp_path / "other")))
    assert first.metrics == second.metrics
    assert first.metrics != run(dataclasses.replace(spec, seed=1), here).metrics


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "step"])
@pytest.mark.parametrize("batches", [2, 3, 5])  # in the first epoch, at its end, in the second
def test_an_interrupted_trial_goes_on_to_the_very_same_numbers(few, here, tmp_path, monkeypatch, schedule, batches):
    spec = few(
        optim=OptimSpec(schedule=schedule, decay_epochs=1, patience=0),
        model=ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs={"units": 1, "drop_path_rate": 0.2}),
        # in double, weights that pass through single on their way back are others
        train=TrainSpec(epochs=3, select="best", precision="fp64" if schedule == "step" else "fp32"),
    )
    whole = dataclasses.replace(here, store=str(tmp_path / "whole"))
    undisturbed = run(spec, whole)
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    assert read_record(trial_folder(here.store, spec.trial_id)) is None
    resumed = run(spec, here)
    assert resumed.metrics == undisturbed.metrics
    assert history(here, spec) == history(whole, spec)
    last = [
        torch.load(trial_folder(e.store, spec.trial_id) / "last.ckpt", weights_only=True)["state_dict"]
        for e in (here, whole)
    ]
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_torn_checkpoint_is_said_and_the_one_before_is_used(quick, here, tmp_path, monkeypatch, capsys, damage):
    spec = quick(epochs=3)
    undisturbed = run(spec, dataclasses.replace(here, store=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_after(patch, 8)  # in the third epoch of three steps, after two were saved
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    last = trial_folder(here.store, spec.trial_id) / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert run(spec, here).metrics == undisturbed.metrics
    assert "last.ckpt is corrupt or incomplete" in capsys.readouterr().err


def test_a_corrupt_best_checkpoint_is_reported_before_the_trial_resumes(quick, here, tmp_path, monkeypatch, capsys):
    spec = quick(epochs=3, train=TrainSpec(epochs=3, select="best"))
    undisturbed = run(spec, dataclasses.replace(here, store=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(InterruptedTrialError):
            run(spec, here)
    best = trial_folder(here.store, spec.trial_id) / "best.ckpt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    assert run(spec, here).metrics == undisturbed.metrics
    assert "best.ckpt is corrupt or incomplete: the trial begins anew" in capsys.readouterr().err


def test_sigterm_after_the_last_batch_loses_nothing(quick, here, monkeypatch):
    spec = quick()

    original = ClassificationTask.on_validation_epoch_start

    def terminate(self):
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "on_validation_epoch_start", terminate)
        with contextlib.suppress(InterruptedTrialError):
            run(spec, here)
    steps = []
    monkeypatch.setattr(ClassificationTask, "on_before_optimizer_step", lambda *_: steps.append(1))
    assert run(spec, here).status == "finished" and not steps


def test_a_finished_trial_is_not_run_again(quick, here, monkeypatch):
    spec = quick()
    first = run(spec, here)
    monkeypatch.setattr(train, "TrialRun", lambda *_: pytest.fail("the trial was run twice"))
    assert run(spec, here) == first


def test_other_peoples_folders_are_no_stores(quick, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SpecError, match=r"contains other files \(thesis\.tex\)"):
        run(quick(), ExecSpec(store=str(tmp_path), logger="none"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_trial_that_fails_keeps_its_traceback_and_can_be_tried_anew(quick, here, monkeypatch):
    spec = quick()
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(spec, here)
    record = read_record(trial_folder(here.store, spec.trial_id))
    assert record.status == "failed" and "ZeroDivisionError: division by zero" in record.error
    assert run(spec, here).status == "finished"


def test_a_finished_trial_says_so_where_its_images_have_changed(quick, here, tmp_path, capsys):
    spec = quick(data=class_folders(tmp_path / "images"), epochs=1)
    here = dataclasses.replace(here, data_workers=0)
    first = run(spec, here)
    assert run(spec, here) == first and "images was" not in capsys.readouterr().err
    (tmp_path / "images" / "train" / "class0" / "0.png").unlink()
    assert run(spec, here) == first
    assert f"images was {first.data['digest']} and is " in capsys.readouterr().err
    (tmp_path / "images").rename(tmp_path / "gone")
    assert run(spec, here) == first


@pytest.mark.parametrize(
    ("batch_size", "said"),
    [
        (256, r"the training loss is nan or infinite in batch \d of epoch 0, lr 1e\+25"),
        (512, "the loss on the test images"),
    ],
)
def test_a_loss_that_is_no_number_fails_the_trial(quick, here, batch_size, said):
    # 809 images: with 512 a batch there is one step an epoch, and training ends before its loss shows
    data, optim = DataSpec(batch_size=batch_size), OptimSpec(lr=1e25, schedule="constant")
    spec = quick(data=data, optim=optim, epochs=1)
    with pytest.raises(FloatingPointError, match=said):
        run(spec, here)
    assert read_record(trial_folder(here.store, spec.trial_id)).error_kind == "NaN loss"


def test_without_a_validation_loss_no_weights_are_best(quick, here, monkeypatch):
    spec = quick(train=TrainSpec(epochs=1, select="best"))
    monkeypatch.setattr(MeanLoss, "compute", lambda _: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="in every epoch, so none is best"):
        run(spec, here)
    assert read_record(trial_folder(here.store, spec.trial_id)).error_kind == "NaN loss"


def test_the_record_says_what_was_run_and_what_it_costs(quick, here):
    spec = quick(SESpec(reduction=4))
    record = json.loads((trial_folder(here.store, run(spec, here).trial_id) / "record.json").read_text())
    assert record["spec"] == spec.flat()
    assert record["complexity"]["params"] == sum(p.numel() for p in create_model(spec.model, 10, 1).parameters())
    assert record["complexity"]["params_se"] == sum(2 * s["channels"] * s["hidden"] for s in record["sites"])
    assert [s["name"] for s in record["sites"]] == [f"SE_{stage}_1" for stage in (2, 3, 4)]
    assert {"seconds", "step_ms"} <= record["timings"].keys()
    assert torch.__version__.startswith(record["provenance"]["torch"])
    assert sum(record["data"]["images"].values()) == 1797


def test_metrics_are_those_of_the_predictions(quick, here):
    spec = quick()
    metrics = run(spec, here).metrics
    folder = trial_folder(here.store, spec.trial_id)
    predictions = np.load(folder / "predictions.npz")
    data = create_data(spec.data, spec.seed)
    assert predictions["key"].tolist() == list(data.test_keys())
    images, labels = data.tensors("test")
    np.testing.assert_array_equal(predictions["label"], labels)
    assert metrics["test/top1_error"] == pytest.approx(100 * (1 - predictions["correct"].mean()), abs=1e-4)
    in_top5 = (predictions["top5"] == predictions["label"][:, None]).any(1)
    assert metrics["test/top5_error"] == pytest.approx(100 * (1 - in_top5.mean()), abs=1e-4)
    # and the weights that were kept give them, by scikit-learn's account
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    model = create_model(spec.model, 10, 1).eval()
    model.load_state_dict(
        {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    )
    with torch.no_grad():
        scores = model(data.normalise(images)).softmax(1).double().numpy()
    likely = np.take_along_axis(scores, predictions["top5"], 1)
    np.testing.assert_allclose(predictions["probability"], likely, rtol=1e-4, atol=1e-6)
    labels = labels.numpy()
    assert metrics["test/top1_error"] == pytest.approx(100 * (1 - accuracy_score(labels, scores.argmax(1))), abs=1e-4)
    assert metrics["test/top5_error"] == pytest.approx(100 * (1 - top_k_accuracy_score(labels, scores, k=5)), abs=1e-4)
    assert metrics["test/loss"] == pytest.approx(log_loss(labels, scores / scores.sum(1, keepdims=True)), abs=1e-4)


def test_best_weights_are_those_of_the_lowest_validation_loss(quick, here):
    spec = quick(epochs=4, train=TrainSpec(epochs=4, select="best"), optim=OptimSpec(lr=0.5, schedule="constant"))
    run(spec, here)
    best = min(history(here, spec), key=lambda row: float(row["val/loss"]))
    checkpoint = torch.load(trial_folder(here.store, spec.trial_id) / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == int(best["epoch"])


def test_with_five_classes_there_is_no_top5_error(tmp_path, here, quick):
    spec = quick(data=class_folders(tmp_path / "images"))
    metrics = run(spec, dataclasses.replace(here, data_workers=0)).metrics
    assert "test/top1_error" in metrics and not any("top5" in key for key in metrics)


def test_what_needs_validation_images_is_refused_where_a_folder_holds_none_out(tmp_path, here, quick):
    data = dataclasses.replace(class_folders(tmp_path / "images"), val_fraction=0.0)
    with pytest.raises(SpecError, match=r"train\.select=best needs validation images"):
        run(quick(data=data, train=TrainSpec(epochs=1, select="best")), here)
    assert not trial_folder(here.store, quick(data=data).trial_id).exists()


def test_without_wandb_variables_a_trial_logs_offline(quick, tmp_path, wandb_offline):
    spec = quick(epochs=1)
    run(spec, ExecSpec(store=str(tmp_path)))
    assert list((tmp_path / spec.trial_id / "wandb").glob(f"offline-run-*-{spec.trial_id}/run-{spec.trial_id}.wandb"))


def test_each_trial_of_a_process_is_a_wandb_run_of_its_own(quick, tmp_path, wandb_offline):
    failing = quick(optim=OptimSpec(lr=1e30))
    with pytest.raises(FloatingPointError):
        run(failing, ExecSpec(store=str(tmp_path)))
    with wandb.init(project="mine", dir=tmp_path, mode="offline") as mine:
        inside = quick(epochs=1, seed=1)
        run(inside, ExecSpec(store=str(tmp_path)))
        assert wandb.run is mine and mine.config["trial_id"] == inside.trial_id
    run(quick(epochs=1), ExecSpec(store=str(tmp_path)))
    assert wandb.run is None
    begun = [spec.trial_id for spec in (failing, quick(epochs=1)) if list(tmp_path.glob(f"{spec.trial_id}/wandb/off*"))]
    assert begun == [failing.trial_id, quick(epochs=1).trial_id]


@pytest.mark.slow
@pytest.mark.parametrize("fused", ["off", "on"])
def test_a_compiled_trial_goes_on_to_the_very_same_numbers_and_they_are_the_plain_ones(
    quick, here, tmp_path, monkeypatch, fused
):
    def spec(fused, **how):
        model = ModelSpec("cifar_resnet20", SESpec(reduction=4), fused=fused, kwargs={"units": 1})
        return quick(model=model, train=TrainSpec(epochs=2, precision="fp64", ema=0.8, **how))

    def told_in_validation(self, batch, batch_idx):
        ask_to_stop(self.trainer)
        return validation_step(self, batch, batch_idx)

    plain, compiled = spec("off"), spec(fused, compile=True)
    whole = dataclasses.replace(here, store=str(tmp_path / "whole"))
    expected = run(plain, whole).metrics
    torch._dynamo.reset()
    undisturbed = run(compiled, whole)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    assert undisturbed.metrics == pytest.approx(expected, rel=1e-9)
    torch._dynamo.reset()
    validation_step = ClassificationTask.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "validation_step", told_in_validation)
        with pytest.raises(InterruptedTrialError):
            run(compiled, here)
    torch._dynamo.reset()  # as another process would
    assert run(compiled, here).metrics == undisturbed.metrics
    states = [
        torch.load(trial_folder(e.store, s.trial_id) / "last.ckpt", weights_only=True)["state_dict"]
        for e, s in ((here, compiled), (whole, compiled), (whole, plain))
    ]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_no_memory_is_filled_before_it_is_written(quick, here, monkeypatch):
    seen = []

    def spy(self, batch, number):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            torch.empty(8)
        seen.extend(event.key for event in profiler.key_averages())
        raise StopIteration

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # PyTorch's default
    monkeypatch.setattr(ClassificationTask, "on_train_batch_start", spy)
    with contextlib.suppress(StopIteration):
        run(quick(), here)
    assert torch.are_deterministic_algorithms_enabled()
    assert "aten::empty" in seen and "aten::fill_" not in seen
