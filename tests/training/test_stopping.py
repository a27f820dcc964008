"""What tells a trial to stop, and who hears of it."""

import signal

import pytest

from se_lab.training.stopping import SIGNALS, InterruptedTrialError, Stop, catch_signals


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


def test_a_signal_in_what_may_not_be_broken_off_stops_after_it():
    done = []

    def told_in_the_middle(stop):
        with stop.deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append(stop.asked)

    with catch_signals(Stop()) as stop, pytest.raises(InterruptedTrialError):
        told_in_the_middle(stop)
    with catch_signals(Stop(at_once=False)) as stop:  # its owner looks at `asked`
        told_in_the_middle(stop)
    assert done == [True, True]
