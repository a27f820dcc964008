"""What a trial says before it trains."""

from __future__ import annotations

from se_lab.training.run import run


def test_a_line_says_what_a_trial_trains_on_in_a_sweep_and_a_rank_too(few, here, capsys):
    run(few(), here, progress=lambda row: None)  # as a worker of a sweep and a rank do
    assert "few: 12 train, 6 val, 6 test images of 8×8 pixels in 6 classes" in capsys.readouterr().err
