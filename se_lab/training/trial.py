"""A running trial: its spec, rank, stop signal and images."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from se_lab import store
from se_lab.data import ImageData, create_data
from se_lab.parallel.collectives import Rank, broadcast_object, gather_objects, join_ranks
from se_lab.spec import ExecSpec, RunSpec
from se_lab.training.folder import TrialFolder
from se_lab.training.preflight import check_built, check_maps, check_norms, device_of
from se_lab.training.process import prepare
from se_lab.training.stopping import InterruptedTrialError, Stop, catch_signals
from se_lab.training.task import ClassificationTask
from se_lab.training.trainer import quiet_lightning
from se_lab.units.fused import Work, choose, fuse


@dataclass(frozen=True)
class Trial:
    """A trial that is about to run, on one of its ranks."""

    spec: RunSpec
    execution: ExecSpec
    rank: Rank
    stop: Stop
    data: ImageData

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image, (C, H, W)."""
        return self.data.in_chans, self.data.image_size, self.data.image_size

    def create_task(self) -> ClassificationTask:
        """Return the task with its net.

        Raises:
            SpecError: for a net that cannot be built, or whose maps are too small for its batch norms or units.
        """
        task = ClassificationTask(self.spec, len(self.data.classes), self.data.in_chans)
        check_norms(task.model, self.spec, self.shape)
        check_maps(task.model, self.spec, self.shape)
        return task

    def fuse_if_faster(self, task: ClassificationTask, macs: int) -> str:
        """Fuse the units of a task if `model.fused` says so, and return the choice and its reason.

        Args:
            task: The task, which is changed in place.
            macs: Multiply-accumulates of the forward pass of an image.
        """
        train, images = self.spec.train, self.data.sizes["train"]
        micro_batch = min(self.spec.data.batch_size, images) // (train.ranks * train.accumulate)
        work = Work(macs * micro_batch, float(macs) * images * train.epochs)
        fused, reason = choose(self.spec.model.fused, device_of(self.execution), work, task.model)
        if fused:
            fuse(task)
        return reason

    @contextlib.contextmanager
    def claim_folder(self, path: Path) -> Iterator[TrialFolder]:
        """Claim the trial's folder on rank 0, and let the other ranks wait for the claim.

        Raises:
            TrialBusyError: if another worker holds the trial.
        """
        with contextlib.ExitStack() as stack:
            claim, message = None, ""
            if self.rank.number == 0:
                try:
                    claim = stack.enter_context(store.claim(path))
                except store.TrialBusyError as error:
                    message = str(error)
            if message := broadcast_object(message):
                raise store.TrialBusyError(message)
            yield TrialFolder(path, self.spec.trial_id, claim)

    def leave_if_asked(self) -> None:
        """Raise InterruptedTrialError on all ranks if one of them was asked to stop."""
        if any(gather_objects(self.stop.asked)):
            raise InterruptedTrialError


@contextlib.contextmanager
def open_trial(spec: RunSpec, execution: ExecSpec, rank: Rank, *, announced: bool = False) -> Iterator[Trial]:
    """Join the other ranks, catch signals, and open the images; if `announced`, print a summary.

    Raises:
        DataError: if a folder or file is missing or invalid.
        SpecError: if the spec needs validation images and there are none.
        InterruptedTrialError: if a rank was asked to stop.
    """
    prepare(execution.threads)
    quiet_lightning()
    with catch_signals(Stop(at_once=rank.ranks == 1)) as stop, join_ranks(rank, device_of(execution)):
        trial = Trial(spec, execution, rank, stop, open_data(spec, execution, rank))
        if announced and rank.number == 0:
            print(trial.data.summary(), file=sys.stderr)
        check_built(spec, trial.data)
        trial.leave_if_asked()
        yield trial


def open_data(spec: RunSpec, execution: ExecSpec, rank: Rank) -> ImageData:
    """Open the images of a trial; one rank per node downloads them before the others open them."""

    def open_images(download: bool) -> ImageData:
        return create_data(
            spec.data,
            spec.seed,
            root=execution.data_root,
            workers=execution.data_workers,
            download=download,
            accumulate=spec.train.accumulate,
        )

    if not execution.download or rank.ranks == 1:
        return open_images(execution.download)
    data = open_images(True) if rank.local == 0 else None
    broadcast_object(None)
    return data or open_images(False)
