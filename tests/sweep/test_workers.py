"""How many trials at a time: what cores and memory take, and never a share of a trial."""

import dataclasses

import pytest

from se_lab.spec import SESpec
from se_lab.sweep import workers
from se_lab.sweep.workers import choose_workers
from se_lab.training.rehearse import Rehearsal

GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """Return a setter of what the machine has, and of what a rehearsal finds a trial to take."""

    def set_machine(cores, free, host=GIB, device=0, images_per_s=None):
        fields = {field.name: 0 for field in dataclasses.fields(Rehearsal)}
        found = Rehearsal(**fields | {"host_bytes": host, "device_bytes": device})
        monkeypatch.setattr(workers, "available_cores", lambda: cores)
        monkeypatch.setattr(workers, "_free_memory", lambda: free)
        answers = {workers.rehearse: found, workers._free_gpu_memory: free}
        monkeypatch.setattr(workers, "call_in_process", lambda function, *arguments: answers[function])
        monkeypatch.setattr(workers, "_joint_throughput", lambda trial, data, count: images_per_s[count])

    return set_machine


def test_cores_memory_and_the_number_of_trials_limit_it_on_a_cpu(machine, quick, here):
    trials = [quick(seed=seed) for seed in range(20)]
    machine(cores=8, free=100 * GIB)
    assert choose_workers(trials, here)[0] == 8
    assert choose_workers(trials, dataclasses.replace(here, threads=3))[0] == 2
    assert choose_workers(trials[:5], here)[0] == 5
    machine(cores=8, free=10 * GIB, host=3 * GIB)
    assert choose_workers(trials, here)[0] == 2
    machine(cores=1, free=GIB, host=3 * GIB)
    assert choose_workers(trials, here)[0] == 1


def test_on_a_gpu_more_are_taken_as_long_as_they_get_more_done(machine, quick, here):
    trials = [quick(seed=seed) for seed in range(20)]
    speeds = {1: 1000.0, 2: 1900.0, 4: 2800.0, 8: 2900.0, 16: 5000.0}
    machine(cores=16, free=80 * GIB, device=GIB, images_per_s=speeds)
    count, said = choose_workers(trials, here)
    assert count == 4 and "8 together 2,900" in said
    machine(cores=16, free=5 * GIB, device=GIB, images_per_s=speeds)  # and CUDA itself takes its share
    assert choose_workers(trials, here)[0] == 2


def test_it_looks_at_a_real_trial_of_the_largest_net(quick, here):
    count, said = choose_workers([quick(SESpec(insertion="none")), quick()], here)
    assert 1 <= count <= 2 and "GiB each of" in said
