"""One trial, from its spec to its record, interrupted or not."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import logging
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar

from se_lab import store
from se_lab.complexity import profile
from se_lab.data import ImageData, check_split, create_data
from se_lab.flags import import_plugins
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.store import RunRecord
from se_lab.task import ClassificationTask, check_optimizer

RESUME_ME = 75
"""The exit status of a trial that was told to stop and can go on (EX_TEMPFAIL)."""


PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


class InterruptedTrialError(BaseException):
    """The trial was told to stop, has saved its state, and can be resumed. Not an Exception: no failure to record."""


Progress = Callable[[Mapping[str, float]], None]
"""Called with the row of each finished epoch."""


def run(spec: RunSpec, execution: ExecSpec | None = None, *, progress: Progress | None = None) -> RunRecord:
    """Run a trial to its end, from wherever it stands, and return its record.

    A finished trial is not run again; a failed one goes on from its checkpoint. SIGTERM ends a running one after its
    current batch, with a checkpoint to go on from.

    Args:
        spec: What to run.
        execution: Where and how.
        progress: Called with each epoch's row.

    Raises:
        SpecError, DataError: before anything is written, for what cannot be run.
        TrialBusyError: while another worker holds the trial.
        InterruptedTrialError: on SIGTERM or SIGINT, with everything saved.
        Exception: whatever made the trial fail, after its traceback went into the record.
    """
    execution = execution or ExecSpec()
    import_plugins(execution.plugins)
    folder = store.trial_folder(execution.store, spec.trial_id)
    if (record := _finished(folder)) is not None:
        return record
    check_optimizer(spec.optim)
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device is 'cuda', and PyTorch finds no GPU here; auto takes one where there is one")
    torch.set_num_threads(execution.threads)
    data = create_data(
        spec.data, spec.seed, root=execution.data_root, workers=execution.data_workers, download=execution.download
    )
    for key, needs in (
        ("optim.schedule=plateau", spec.optim.schedule == "plateau"),
        ("train.select=best", spec.train.select == "best"),
    ):
        if needs:
            check_split(spec.data, data.sizes, key)
    task = ClassificationTask(spec, len(data.classes), data.in_chans)
    with store.claim(folder) as claim:
        if (record := _finished(folder)) is not None:  # by another worker, while this one was building
            return record
        store.clear_leftovers(folder)
        record = _new_record(spec, execution, data, task)
        try:
            _train_and_test(record, task, data, folder, execution, claim, progress)
        except Exception:
            record.status, record.error = "failed", traceback.format_exc()
            claim.check()
            store.write_record(folder, record)
            raise
        claim.check()
        return store.write_record(folder, record)


def _finished(folder: Path) -> RunRecord | None:
    record = store.read_record(folder)
    return record if record is not None and record.status == "finished" else None


def _train_and_test(
    record: RunRecord,
    task: ClassificationTask,
    data: ImageData,
    folder: Path,
    execution: ExecSpec,
    claim: store.Claim,
    progress: Progress | None,
) -> None:
    keeper = TrialKeeper(folder, claim, progress)
    bar = [RichProgressBar(leave=True)] if progress is None and sys.stderr.isatty() else []
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator=execution.device if execution.device != "auto" else "auto",
        devices=1,
        max_epochs=task.spec.train.epochs,
        callbacks=[keeper, *bar],
        logger=_wandb_logger(task.spec, record, folder, execution) if execution.wandb else False,
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        precision=PRECISION[task.spec.train.precision],
        gradient_clip_val=task.spec.train.clip_norm or None,
        num_sanity_val_steps=0,
        deterministic="warn",
        log_every_n_steps=1,
    )
    with _signals_set(keeper):
        try:
            trainer.fit(task, datamodule=data, ckpt_path=newest_checkpoint(folder), weights_only=True)
        except SystemExit:  # Lightning's own answer to SIGTERM after the last batch, and to a second Ctrl-C
            raise InterruptedTrialError from None
        if task.spec.train.select == "best":
            best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
            task.load_state_dict(best["state_dict"])
        trainer.test(task, datamodule=data, verbose=False)
    _write_predictions(folder, task, data)
    tested = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")}
    last = {key: value for key, value in task.history[-1].items() if key.startswith(("train/", "val/"))}
    record.metrics = last | tested
    record.timings = keeper.timings()
    record.status = "finished"
    for logger in trainer.loggers:
        logger.log_metrics({**record.metrics, "params": record.complexity["params"], "macs": record.complexity["macs"]})
        logger.finalize("success")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a trial that is whole, by its checksums; say so where that is not the last."""
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return path
        except FileNotFoundError:
            continue
        except (zipfile.BadZipFile, OSError, EOFError):
            pass
        print(f"{path} is torn: going on without it", file=sys.stderr)
    return None


class TrialKeeper(Checkpoint):
    """Keeps a trial's folder: checkpoints, metrics.csv, the clock; and stops the trial when it is told to.

    Lightning runs a Checkpoint callback after all others, so what it saves at the end of an epoch is complete.
    """

    def __init__(self, folder: Path, claim: store.Claim, progress: Progress | None) -> None:
        self.folder, self.claim, self.progress = folder, claim, progress
        self.stop_asked = False
        self.best_loss = float("inf")
        self.seconds = 0.0  # of the runs before this one
        self.step_ms: list[float] = []
        self._began = self._batch_began = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock of a step."""
        self._batch_began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop it; and the trial, if it was told to."""
        self.step_ms.append(1000 * (time.perf_counter() - self._batch_began))
        if self.stop_asked and not trainer.is_last_batch:  # else the epoch's end is a moment away
            self._save(trainer, "last.ckpt")
            raise InterruptedTrialError

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Save the epoch, and report its row."""
        assert isinstance(task, ClassificationTask)
        row = task.history[-1]
        if (loss := row.get("val/loss", float("inf"))) < self.best_loss:
            self.best_loss = loss
            self._save(trainer, "best.ckpt")
        self._save(trainer, "last.ckpt")
        _write_history(self.folder, task.history)
        if self.progress is not None:
            self.progress(row)
        if self.stop_asked and trainer.current_epoch + 1 < task.spec.train.epochs:
            raise InterruptedTrialError

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        return {"best_loss": self.best_loss, "seconds": self.seconds + time.perf_counter() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.best_loss, self.seconds = state_dict["best_loss"], state_dict["seconds"]

    def timings(self) -> dict[str, float]:
        """Return seconds in all, the median training step in ms, images/s of the last epochs, and peak memory."""
        timings = {"seconds": self.seconds + time.perf_counter() - self._began}
        if self.step_ms:
            timings["step_ms"] = statistics.median(self.step_ms)
        if torch.cuda.is_available():
            timings["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
        return timings

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self.claim.check()
        path = self.folder / name
        aside = self.folder / f".{name}.{os.getpid()}"
        trainer.save_checkpoint(aside, weights_only=False)  # with the optimizer and the loops, that is
        if name == "last.ckpt" and path.exists():
            path.replace(self.folder / "previous.ckpt")
        store.put_in_place(aside, path)


@contextlib.contextmanager
def _signals_set(keeper: TrialKeeper) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the trial after its current batch; a second SIGINT ends it at once."""

    def ask(signum: int, frame: object) -> None:
        keeper.stop_asked = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # a worker of a sweep: Ctrl-C goes to the sweep, which asks by SIGTERM
            with contextlib.suppress(ValueError):  # not the main thread: whoever runs it there handles signals
                before[number] = signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _new_record(spec: RunSpec, execution: ExecSpec, data: ImageData, task: ClassificationTask) -> RunRecord:
    costs = profile(task.model, (data.in_chans, data.image_size, data.image_size))
    sites = [dataclasses.asdict(site) for site in task.model.se_sites]  # type: ignore[union-attr]
    return RunRecord(
        trial_id=spec.trial_id,
        status="failed",
        spec=spec.flat(),
        execution=dataclasses.asdict(execution),
        sites=sites,
        complexity={key: value for key, value in dataclasses.asdict(costs).items() if key != "by_module"},
        data={"digest": data.digest, "images": data.sizes, "classes": len(data.classes)},
        versions=_versions(),
        git=_git_state(),
        host={"name": socket.gethostname(), "platform": platform.platform(), "device": _device_name(execution)},
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    packages = ("se-lab", "torch", "torchvision", "lightning", "timm", "wandb", "fvcore", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the folder the trial was started in, and whether it had changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(execution: ExecSpec) -> str:
    if execution.device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {execution.threads} thread(s)"


def _wandb_logger(spec: RunSpec, record: RunRecord, folder: Path, execution: ExecSpec) -> Any:
    """Return Lightning's WandbLogger: offline unless W&B's own variables say otherwise."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    agent = "WANDB_SWEEP_ID" in os.environ  # an agent brings the run's id, and it is online unless told otherwise
    mode = os.environ.get("WANDB_MODE", "online" if agent else "offline")
    logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT", execution.project),
        id=None if agent else spec.trial_id,
        name=None if agent else _run_name(spec),
        save_dir=folder,
        log_model=False,
        settings=wandb.Settings(mode=mode, silent=True, console="off"),  # type: ignore[arg-type]
    )
    flat = {key: value for key, value in record.spec.items() if value is not None}
    run = logger.experiment
    # keys that the agent set are locked to the sweep: what it brought stays as it is
    run.config.update({k: v for k, v in (flat | {"trial_id": spec.trial_id}).items() if k not in run.config})
    return logger


def _run_name(spec: RunSpec) -> str:
    se = spec.model.se
    unit = "no SE" if se.insertion == "none" else f"{se.insertion} r={se.reduction} {se.squeeze} {se.excitation}"
    return f"{spec.model.backbone} {unit} seed {spec.seed}"


def _write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write metrics.csv whole, a row an epoch: a resumed trial leaves no row twice and none out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    store.write_whole(folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))


def _write_predictions(folder: Path, task: ClassificationTask, data: ImageData) -> None:
    images, labels, top5 = (np.concatenate(parts) for parts in task.predictions.values())
    keys = np.array(data.test_keys())[images]
    arrays = {"key": keys, "label": labels, "top5": top5, "correct": top5[:, 0] == labels}
    store.write_whole(folder / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))


for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="lightning.*", message=".*does not have many workers.*")
