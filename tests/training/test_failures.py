"""Why trials fail: real errors, by their type, their number or their words."""

import errno
import os
import signal
import socket

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from se_lab.training import failures
from se_lab.training.failures import death, failure_kind, reason


class Dies(Dataset):
    """A data set whose reader is killed, as by a system that is out of memory."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def too_much_memory():
    torch.empty(1 << 46, dtype=torch.float64)


def loader_dies():
    next(iter(DataLoader(Dies(), num_workers=1)))


def disk_full():
    with open("/dev/full", "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write("x")


def disk_full_for_a_checkpoint():
    torch.save(torch.zeros(100_000), "/dev/full")


def nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    socket.create_connection(("127.0.0.1", port), timeout=5)


def nan_loss():
    raise FloatingPointError("the training loss is nan")


def wrapped():
    try:
        disk_full()
    except OSError as error:
        raise RuntimeError("the checkpoint was not written") from error


def plain():
    raise KeyError("no such layer")


@pytest.mark.parametrize(
    ("happens", "kind"),
    [
        (too_much_memory, "out of memory"),
        (loader_dies, "data loader"),
        (disk_full, "disk full"),
        (disk_full_for_a_checkpoint, "disk full"),
        (wrapped, "disk full"),
        (nobody_listens, "network"),
        (nan_loss, "NaN loss"),
        (plain, "error"),
    ],
)
def test_each_real_failure_has_its_kind(happens, kind):
    if happens in (disk_full, disk_full_for_a_checkpoint, wrapped) and not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("this system has no /dev/full")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        happens()
    assert failure_kind(caught.value) == kind, repr(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "broken device"),
        (RuntimeError("CUDA error: unspecified launch failure"), "broken device"),
        (OSError(errno.EIO, "Input/output error"), "broken device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk full"),
        (ValueError("out of memory is what this sentence is about"), "error"),
    ],
)
def test_what_a_gpu_or_a_disk_says_is_understood(error, kind):
    assert failure_kind(error) == kind


def test_a_process_that_died_says_how():
    assert "SIGKILL (perhaps out of memory)" in death(-signal.SIGKILL)
    assert "SIGSEGV (a crash outside Python)" in death(-signal.SIGSEGV)
    assert "status 3" in death(3)
    assert reason("Traceback …\n  File …\nKeyError: 'x'\n") == "KeyError: 'x'"
    assert set(failures.RETRYABLE) <= {failures.LOST, failures.LOADER, failures.NETWORK}
