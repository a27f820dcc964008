"""The optimizer, the schedule and the precision that a spec names."""

import csv

import numpy as np
import pytest
import torch

from se_lab.spec import OptimSpec, TrainSpec
from se_lab.store import trial_folder
from se_lab.training.optimize import create_optimizer
from se_lab.training.run import run
from se_lab.training.task import ClassificationTask


def history(execution, spec):
    with (trial_folder(execution.store, spec.trial_id) / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (OptimSpec(lr=0.1, schedule="step", decay_epochs=2), [0.1, 0.1, 0.01, 0.01]),
        (OptimSpec(lr=0.1, schedule="multistep", milestones=(1, 3)), [0.1, 0.01, 0.01, 0.001]),
        (OptimSpec(lr=0.1, schedule="cosine"), [0.1, 0.0853553, 0.05, 0.0146447]),  # 0.05 (1 + cos(π t / 4))
        (OptimSpec(lr=0.1, schedule="constant", warmup_epochs=2), [0.05, 0.075, 0.1, 0.1]),
        (OptimSpec(lr=0.1, schedule="plateau", warmup_epochs=2), [0.05, 0.075, 0.1, 0.1]),
    ],
)
def test_learning_rate_follows_the_schedule(few, here, optim, expected):
    spec = few(train=TrainSpec(epochs=4), optim=optim)
    run(spec, here)
    np.testing.assert_allclose([float(row["lr"]) for row in history(here, spec)], expected, rtol=1e-5)


def test_sgd_is_the_papers_with_plain_momentum():
    groups = create_optimizer(torch.nn.Linear(2, 2), OptimSpec()).param_groups
    assert all(not group["nesterov"] and group["momentum"] == 0.9 for group in groups)
    nesterov = create_optimizer(torch.nn.Linear(2, 2), OptimSpec(name="nesterov"))
    assert all(group["nesterov"] for group in nesterov.param_groups)


def test_precision_and_memory_order_are_those_of_the_spec(quick, here, monkeypatch):
    seen = []
    original = ClassificationTask.forward

    def spy(self, images):
        logits = original(self, images)
        seen.append((logits.dtype, self.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)))
        return logits

    monkeypatch.setattr(ClassificationTask, "forward", spy)
    spec = quick(train=TrainSpec(epochs=1, precision="bf16", channels_last=True), optim=OptimSpec(schedule="onecycle"))
    assert run(spec, here).status == "finished"
    assert set(seen) == {(torch.bfloat16, True)}


def test_gradients_are_clipped_to_the_norm_of_the_spec(quick, here, monkeypatch):
    norms = []
    original = ClassificationTask.configure_gradient_clipping

    def clip(self, *args, **kwargs):
        original(self, *args, **kwargs)
        norms.append(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in self.parameters()])).item())

    monkeypatch.setattr(ClassificationTask, "configure_gradient_clipping", clip)
    run(quick(train=TrainSpec(epochs=1, clip_norm=0.1)), here)
    assert norms == pytest.approx([0.1] * len(norms), rel=1e-3)
