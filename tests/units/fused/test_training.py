"""Trials with fused SE units: told in the record, and the plain trial in all else."""

import dataclasses

import pytest

from se_lab import run
from se_lab.spec import TrainSpec
from se_lab.training.rehearse import rehearse
from se_lab.units.fused import choice, passes, units


def test_a_fused_trial_is_the_plain_one_in_float64(quick, here, monkeypatch):
    calls, tail = [], units.tail
    monkeypatch.setattr(units, "tail", lambda *given: calls.append(given) or tail(*given))
    plain = quick(train=TrainSpec(epochs=1, precision="fp64"))
    expected = run(plain, dataclasses.replace(here, store=f"{here.store}_plain"))
    assert not calls
    assert expected.host["fused"] == "off: the steps are too small to be faster"
    monkeypatch.setitem(choice.MINIMUM_WORK, "cpu", choice.Work(0, 0))
    told = run(plain, here)
    if told.host["fused"].startswith("off"):
        pytest.skip(told.host["fused"])
    assert calls
    assert told.host["fused"] == "on: the steps are large enough to be faster"
    assert told.metrics == pytest.approx(expected.metrics, rel=1e-9)


def test_a_rehearsal_runs_what_the_trial_would(quick, here, monkeypatch):
    calls, tail = [], units.tail
    monkeypatch.setattr(units, "tail", lambda *given: calls.append(given) or tail(*given))
    trial = quick(train=TrainSpec(epochs=1, precision="fp64"))
    rehearse(trial, here)
    assert not calls
    if not passes.compiles("cpu"):
        pytest.skip("no compiler here")
    monkeypatch.setitem(choice.MINIMUM_WORK, "cpu", choice.Work(0, 0))
    rehearse(trial, here)
    assert calls
