"""One trial, from its spec to its record, interrupted or not."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar

from se_lab import store
from se_lab.data import ImageData, create_data, present_digest
from se_lab.parallel.collectives import Place, find_place, gathered, joined, shared, trainer_options
from se_lab.spec import ExecSpec, RunSpec, SpecError, label
from se_lab.spec.flags import import_plugins
from se_lab.store import RunRecord
from se_lab.training.checkpoints import newest_checkpoint
from se_lab.training.failures import LOST, failure_kind, reason
from se_lab.training.keeper import Progress, StoppedEarlyError, TrialKeeper, share_skipped
from se_lab.training.launch import LostRankError, launch
from se_lab.training.preflight import check_before, check_built, check_norms, device_model, device_of
from se_lab.training.process import prepare
from se_lab.training.record import new_record
from se_lab.training.stopping import RESUME_ME, InterruptedTrialError, Stop, heard
from se_lab.training.task import ClassificationTask
from se_lab.units.fused import Work, choose, fuse

__all__ = ["RESUME_ME", "InterruptedTrialError", "Progress", "StoppedEarlyError", "run"]

PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp64": "64-true",
}


def run(spec: RunSpec, execution: ExecSpec | None = None, *, progress: Progress | None = None) -> RunRecord:
    """Run a trial to its end, from wherever it stands, and return its record.

    A finished trial is not run again; a failed one goes on from its checkpoint. A trial of several devices is run by
    as many processes, which this one starts, unless srun or torchrun has. SIGTERM, SIGUSR1 and SIGHUP end a running
    trial within a training step or a batch of an evaluation, with a checkpoint to go on from.

    Args:
        spec: What to run.
        execution: Where and how.
        progress: Called with each epoch's row.

    Raises:
        SpecError, DataError: before anything is written, for what cannot be run.
        TrialBusyError: while another worker holds the trial.
        InterruptedTrialError: on SIGTERM, SIGUSR1, SIGHUP or SIGINT, with everything saved.
        Exception: whatever made the trial fail, after its traceback went into the record.

    Examples:
        >>> net = ModelSpec("cifar_resnet20", kwargs={"units": 1})  # a ResNet-8
        >>> spec = RunSpec(net, DataSpec("digits", batch_size=256), train=TrainSpec(epochs=1))
        >>> record = run(spec, ExecSpec(store="runs", wandb=False))
        >>> record.status
        'finished'
    """
    execution = execution or ExecSpec()
    import_plugins(execution.plugins)
    folder = store.trial_folder(execution.store, spec.trial_id)
    place = find_place(spec.train)
    if (place is None or place.ranks == 1) and (record := _finished(folder)) is not None:
        return name_differences(record, spec, execution, present_digest(spec.data, root=execution.data_root))
    check_before(spec, execution)
    if place is None:
        return _run_ranks(spec, execution, folder, progress)
    prepare(execution.threads)
    with heard(Stop(at_once=place.ranks == 1)) as stop, joined(place, device_of(execution)):
        return _run_here(spec, execution, folder, place, stop, progress)


def _run_ranks(spec: RunSpec, execution: ExecSpec, folder: Path, progress: Progress | None) -> RunRecord:
    """Run a trial in processes of their own; what ended it in another rank than 0, its record says too."""
    try:
        record: RunRecord = launch("run", spec, execution, progress)
    except (SpecError, store.TrialBusyError, store.ClaimLostError):
        raise
    except Exception as error:
        if isinstance(error, LostRankError) or (folder / "claims").is_dir():  # else nothing has begun
            _record_failure(spec, execution, folder, error)
        raise
    return record


def _record_failure(spec: RunSpec, execution: ExecSpec, folder: Path, error: Exception) -> None:
    """Write what ended a trial, unless rank 0 has: it may be gone, or know no more than that another rank has left."""
    with contextlib.suppress(store.TrialBusyError), store.claim(folder):
        record = store.read_record(folder) or RunRecord(spec.trial_id, "failed", spec.flat(), vars(execution))
        text = "".join(traceback.format_exception(error))
        if record.status == "finished" or (record.error and reason(record.error) == reason(text)):
            return
        record.status, record.error = "failed", text
        record.error_kind = LOST if isinstance(error, LostRankError) else failure_kind(error)
        store.write_record(folder, record)


def _run_here(
    spec: RunSpec, execution: ExecSpec, folder: Path, place: Place, stop: Stop, progress: Progress | None
) -> RunRecord:
    """Run a trial in this process, alone or as one of its ranks."""
    data = open_data(spec, execution, place)
    if progress is None and place.rank == 0:
        print(data.summary(), file=sys.stderr)
    check_built(spec, data)
    leave_if_told(stop)
    task = ClassificationTask(spec, len(data.classes), data.in_chans)
    check_norms(task.model, spec, (data.in_chans, data.image_size, data.image_size))
    leave_if_told(stop)
    with claimed(folder, place) as claim:
        # by another worker, while this one was building
        if (done := shared(_finished(folder) if place.rank == 0 else None)) is not None:
            return name_differences(done, spec, execution, data.digest)
        record = new_record(spec, execution, data, task)
        record.host["fused"] = fuse_where_it_pays(task, execution, data, record.complexity["macs"])
        if claim is not None:
            store.clear_leftovers(folder)
        try:
            _train_and_test(record, task, data, folder, execution, place, claim, stop, progress)
        except Exception as error:
            if stop.asked and not isinstance(error, FloatingPointError):  # another rank may have left before this one
                what = "".join(traceback.format_exception_only(error)).strip()
                print(f"told to stop, and stopped by an error, which is not recorded: {what}", file=sys.stderr)
                raise InterruptedTrialError from error
            record.status, record.error = "failed", traceback.format_exc()
            record.error_kind = failure_kind(error)
            if claim is not None:
                claim.check()
                store.clear_leftovers(folder)  # half a checkpoint may be what fills the disk
                store.write_record(folder, record)
            raise
        if claim is None:
            return record
        claim.check()
        return store.write_record(folder, record)


def leave_if_told(stop: Stop) -> None:
    """Raise InterruptedTrialError on all ranks if one was told to stop; while there is nothing to save yet."""
    if any(gathered(stop.asked)):
        raise InterruptedTrialError


def open_data(spec: RunSpec, execution: ExecSpec, place: Place) -> ImageData:
    """Open the images of a trial; what is to be downloaded, by one rank, before the others look for it."""

    def opened(download: bool) -> ImageData:
        return create_data(
            spec.data,
            spec.seed,
            root=execution.data_root,
            workers=execution.data_workers,
            download=download,
            accumulate=spec.train.accumulate,
        )

    if not execution.download or place.ranks == 1:
        return opened(execution.download)
    data = opened(True) if place.local == 0 else None
    shared(None)
    return data or opened(False)


def fuse_where_it_pays(task: ClassificationTask, execution: ExecSpec, data: ImageData, macs: int) -> str:
    """Let a trial's SE units run fused, if its spec says so or that pays, and return which and why.

    Args:
        task: The trial, whose nets are changed in place.
        execution: Where it trains.
        data: Its images.
        macs: Multiply-accumulates of an image's forward pass.
    """
    train, images = task.spec.train, data.sizes["train"]
    at_a_time = min(task.spec.data.batch_size, images) // (train.ranks * train.accumulate)
    work = Work(macs * at_a_time, float(macs) * images * train.epochs)
    fused, why = choose(task.spec.model.fused, device_of(execution), work, task.model)
    if fused:
        fuse(task)
    return why


@contextlib.contextmanager
def claimed(folder: Path, place: Place) -> Iterator[store.Claim | None]:
    """Hold the trial, on rank 0; the others go on when it does."""
    with contextlib.ExitStack() as stack:
        claim, busy = None, ""
        if place.rank == 0:
            try:
                claim = stack.enter_context(store.claim(folder))
            except store.TrialBusyError as error:
                busy = str(error)
        if busy := shared(busy):
            raise store.TrialBusyError(busy)
        yield claim


def _finished(folder: Path) -> RunRecord | None:
    record = store.read_record(folder)
    return record if record is not None and record.status == "finished" else None


def name_differences(record: RunRecord, spec: RunSpec, execution: ExecSpec, images: str | None) -> RunRecord:
    """Print what has changed since a trial finished that could change its numbers, and return its record."""
    now = store.current_provenance(spec, execution, images=images, device=device_model(execution))
    for difference in store.differences(record.provenance, now):
        print(f"trial {record.trial_id} is finished, and {difference}: its numbers may differ today", file=sys.stderr)
    return record


def _train_and_test(
    record: RunRecord,
    task: ClassificationTask,
    data: ImageData,
    folder: Path,
    execution: ExecSpec,
    place: Place,
    claim: store.Claim | None,
    stop: Stop,
    progress: Progress | None,
) -> None:
    keeper = TrialKeeper(folder, claim, stop, minutes=execution.checkpoint_minutes, progress=progress)
    bar = [RichProgressBar(leave=True)] if progress is None and place.rank == 0 and sys.stderr.isatty() else []
    logged = wandb_logger(task.spec, record, folder, execution) if execution.wandb and claim is not None else None
    with logged or contextlib.nullcontext(False) as logger:
        trainer = create_trainer(task.spec, execution, place, folder, callbacks=[keeper, *bar], logger=logger)
        checkpoint = shared(newest_checkpoint(folder) if claim is not None else None)
        record.status = "finished"
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            stop.at_once = False
            if task.open_row is not None:  # of the last epoch, which was resumed in its validation
                keeper.finish_epoch(trainer, task, saved=True)
        except SystemExit:  # Lightning's own answer to a second Ctrl-C
            raise InterruptedTrialError from None
        except StoppedEarlyError:
            record.status = "stopped"
        tested = _test(task, data, folder, keeper, claim) if record.status == "finished" else {}
        last = {key: value for key, value in task.history[-1].items() if key.startswith(("train/", "val/"))}
        record.metrics = last | tested
        record.timings = keeper.timings()
        share_skipped(trainer)
        if data.skipped:
            record.data["skipped"] = data.skipped
        costs = {key: record.complexity[key] for key in ("params", "macs")}
        for active in trainer.loggers:
            active.log_metrics(record.metrics | costs)
            active.finalize("success")


def _test(
    task: ClassificationTask, data: ImageData, folder: Path, keeper: TrialKeeper, claim: store.Claim | None
) -> dict[str, float]:
    """Test the weights that the spec selects, keep their predictions, and return the metrics."""
    if task.spec.train.select == "best":
        if keeper.best_loss == float("inf"):
            raise FloatingPointError("the validation loss was nan or infinite in every epoch: no weights are best")
        best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
        task.load_state_dict(best["state_dict"])
    tested = task.evaluate("test", keeper.stop_testing, keep=True)
    if claim is not None:
        _write_predictions(folder, task, data)
    return tested


def create_trainer(spec: RunSpec, execution: ExecSpec, place: Place, folder: Path, **options: Any) -> L.Trainer:
    """Return Lightning's Trainer for a trial: its loop and its devices; the rest is the keeper's and the task's."""
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator=execution.device,
        accumulate_grad_batches=spec.train.accumulate,
        enable_progress_bar=any(isinstance(callback, RichProgressBar) for callback in options["callbacks"]),
        enable_model_summary=False,
        precision=PRECISION[spec.train.precision],
        gradient_clip_val=spec.train.clip_norm or None,
        num_sanity_val_steps=0,
        deterministic="warn",
        log_every_n_steps=1,
        **trainer_options(place, spec.train),
        **{"max_epochs": spec.train.epochs, **options},
    )
    # which memory that is read before it is written would need: a pass more over each tensor that PyTorch makes
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Lightning's own handler broadcasts to ranks that listen to nobody; se_lab.training.stopping's hears the signals
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


@contextlib.contextmanager
def wandb_logger(spec: RunSpec, record: RunRecord, folder: Path, execution: ExecSpec) -> Iterator[Any]:
    """Yield Lightning's WandbLogger: offline unless W&B's own variables say otherwise.

    An agent's run, and one that the caller has open, is logged to and left open.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    agent = "WANDB_SWEEP_ID" in os.environ  # an agent brings the run's id, and it is online unless told otherwise
    mode = os.environ.get("WANDB_MODE", "online" if agent else "offline")
    ours = wandb.run is None and not agent
    logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT", execution.project),
        id=None if agent else spec.trial_id,
        name=None if agent else label(spec),
        save_dir=folder,
        log_model=False,
        settings=wandb.Settings(mode=mode, silent=True, console="off"),  # type: ignore[arg-type]
    )
    flat = {key: value for key, value in record.spec.items() if value is not None}
    run = logger.experiment
    # keys that the agent set are locked to the sweep: what it brought stays as it is
    run.config.update({k: v for k, v in (flat | {"trial_id": spec.trial_id}).items() if k not in run.config})
    try:
        yield logger
    except BaseException:
        if ours:
            run.finish(exit_code=1)
        raise
    if ours:
        run.finish()


def _write_predictions(folder: Path, task: ClassificationTask, data: ImageData) -> None:
    images, labels, top5 = task.predictions.values()
    keys = np.array(data.test_keys())[images]
    arrays = {"key": keys, "label": labels, "top5": top5, "correct": top5[:, 0] == labels}
    store.write_whole(folder / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))


for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
    logging.getLogger(name).setLevel(logging.WARNING)
for message in (
    ".*does not have many workers.*",
    ".*have no `validation_step`.*",
    ".*`srun` command is available.*",
    ".*`broadcast_buffers` is deprecated.*",  # its heir is newer than the oldest PyTorch that will do
):
    warnings.filterwarnings("ignore", module="lightning.*", message=message)
