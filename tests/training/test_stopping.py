"""What tells a trial to stop, and who hears of it."""

import signal

import pytest

from se_lab.training.stopping import SIGNALS, InterruptedTrialError, Stop, catch_signals, exit_on_signals


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGINT])
def test_whoever_waits_for_what_was_told_to_stop_is_not_torn_out_by_the_next_signal(number):
    with catch_signals(Stop()) as outer:
        with catch_signals(Stop(at_once=False)) as inner:
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # a scheduler and W&B's agent each say it, and again
        assert inner.asked and outer.asked


def test_what_was_not_told_hears_of_it_outside():
    with catch_signals(Stop()) as outer:
        with catch_signals(Stop(at_once=False)) as inner:
            pass
        assert not inner.asked and not outer.asked
        with pytest.raises(InterruptedTrialError):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_before_it_may_raise_raises_then_and_the_next_does_not_break_off_the_cleaning_up():
    with catch_signals(Stop(at_once=False)) as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedTrialError):
            stop.raise_at_once()
        signal.raise_signal(signal.SIGTERM)


def test_a_blocked_signal_that_nobody_took_does_not_kill_the_command_at_its_end(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    with exit_on_signals():
        signal.raise_signal(signal.SIGTERM)
    with exit_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(InterruptedTrialError), catch_signals(Stop()):
            pass
