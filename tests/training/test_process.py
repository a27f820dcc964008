"""A process that trains."""

from __future__ import annotations

import subprocess
import sys

import pytest

REUSE = """
import resource, torch
from se_lab.training.process import prepare
{prepare}
for _ in range(20):  # until the heap has found its shape
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def faults_and_threads(prepare):
    done = subprocess.run(
        [sys.executable, "-c", REUSE.format(prepare=prepare)], capture_output=True, text=True, check=True
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_is_freed_is_not_cleared_anew_by_the_system():
    pages = (1 << 26) // 4096
    plain, _ = faults_and_threads("")
    kept, threads = faults_and_threads("prepare(1)")
    assert threads == 1
    assert plain > 10 * pages - 100  # each of ten maps is new
    assert kept < pages
