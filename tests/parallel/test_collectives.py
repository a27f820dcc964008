"""Several ranks train one trial as one process would, and none is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from se_lab.data import DataError
from se_lab.parallel.collectives import Rank, find_rank
from se_lab.spec import DataSpec, ExecSpec, ModelSpec, OptimSpec, RunSpec, SESpec, SpecError, TrainSpec
from se_lab.spec.flags import import_plugins
from se_lab.store import read_record, trial_folder
from se_lab.training.run import run

TINY = {"units": 1}

FROZEN = """
import timm
from timm.models import register_model

@register_model
def frozen_net(pretrained=False, **kwargs):
    net = timm.create_model("cifar_resnet20", units=1, **kwargs)

    def train(mode=True):
        type(net).train(net, mode)
        for module in net.modules():
            if "BatchNorm" in type(module).__name__:
                module.train(False)
        return net

    net.train = train
    train()
    return net
"""


TROUBLE = """
import os, signal
from se_lab.data import DataError
from se_lab.training.task import ClassificationTask as Task

kind, rank, step, evaluate = os.environ["TROUBLE"], os.environ.get("RANK"), Task.training_step, Task.validation_step
seen = []

def trouble(self, batch, batch_idx):
    seen.append(batch_idx)
    if rank == "1" and len(seen) == 4 and kind == "data":
        raise DataError("an image cannot be read")
    if rank == "1" and len(seen) == 4 and kind.startswith("nan"):
        batch = (batch[0] * float("nan"), *batch[1:])
    if rank == "1" and len(seen) == 4 and kind == "nan, told to stop":
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch, batch_idx)

def stop(self, batch, batch_idx):
    if rank == "1" and kind == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, batch, batch_idx)

Task.training_step, Task.validation_step = trouble, stop
"""

SLOW = """
import os, pathlib, time
from se_lab.training import trial as train

rank, slow_rank, when = os.environ.get("RANK"), *os.environ["SLOW"].split()
open_data = train.open_data

def wait_here():
    pathlib.Path(f"here-{rank}").touch()
    if rank == slow_rank:
        time.sleep(4)

def slowly(*args):
    wait_here()
    return open_data(*args)

if when == "building":
    train.open_data = slowly
else:
    wait_here()
"""


@pytest.fixture
def frozen(tmp_path, monkeypatch):
    """Return the plugin of a net whose batch norms keep their statistics."""
    (tmp_path / "frozen_nets.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(tmp_path)
    import_plugins("frozen_nets")
    return "frozen_nets"


def six_steps(model: ModelSpec, **train) -> RunSpec:
    """Two epochs of digits in three steps each, in double precision."""
    return RunSpec(
        model=model,
        data=DataSpec(batch_size=256),
        optim=OptimSpec(lr=0.05, schedule="cosine"),
        train=TrainSpec(epochs=2, precision="fp64", **train),
    )


def weights(execution: ExecSpec, spec: RunSpec) -> dict[str, torch.Tensor]:
    path = trial_folder(execution.store, spec.trial_id) / "last.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SyncBN", "frozen statistics"])
def test_two_ranks_train_as_one_with_the_same_total_batch(here, frozen, how):
    if how == "SyncBN":
        model, shared = ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs=TINY), {"sync_bn": True}
    else:
        model, shared = ModelSpec("frozen_net", SESpec(reduction=4)), {"accumulate": 2}
        here = replace(here, plugins=frozen)
    one, two = six_steps(model), six_steps(model, devices=2, **shared)
    alone, together = run(one, here), run(two, here)
    for key, value in weights(here, one).items():
        torch.testing.assert_close(weights(here, two)[key], value, rtol=0, atol=1e-9, msg=key)
    assert together.metrics == pytest.approx(alone.metrics, rel=0, abs=1e-9)
    predictions = [np.load(trial_folder(here.store, spec.trial_id) / "predictions.npz") for spec in (one, two)]
    assert all(np.array_equal(predictions[0][key], predictions[1][key]) for key in ("key", "label", "top5"))


def command(spec: RunSpec, store: str) -> list[str]:
    values = {key: value for key, value in spec.flat().items() if value is not None}
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return [sys.executable, "-m", "se_lab.cli", "train", *flags, f"--store={store}", "--wandb=false", "--device=cpu"]


@contextlib.contextmanager
def two_ranks(line: list[str], cwd: Path, **variables: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a command as two ranks, with the variables that torchrun sets, and leave none behind."""
    meeting = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    started = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port), "GROUP_RANK": "0"}
    started |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    ranks = [
        subprocess.Popen(line, env={**os.environ, **started, "RANK": str(n), "LOCAL_RANK": str(n)}, cwd=cwd)
        for n in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Return the process of each rank that a command has started."""
    found = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(v.removeprefix(b"RANK=")): int(pid) for v in variables if v.startswith(b"RANK=")}
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.slow
def test_torchrun_trains_what_the_command_alone_does(here, tmp_path):
    spec = RunSpec(
        model=ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs={**TINY, "drop_path_rate": 0.2}),
        data=DataSpec(batch_size=256),
        train=TrainSpec(epochs=2, devices=2, ema=0.9),
    )
    here = replace(here, device="cpu")
    alone = run(spec, here)
    started = str(tmp_path / "started")
    of_nodes = replace(spec, train=replace(spec.train, devices=1, nodes=2))
    port = free_port()
    launches = [(spec, ["--standalone", "--nproc_per_node=2"])]
    for node in range(2):
        meeting = ["--master_addr=127.0.0.1", f"--master_port={port}"]
        launches.append((of_nodes, ["--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1", *meeting]))
    torchruns = [
        subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *how, *command(trial, started)[1:]])
        for trial, how in launches
    ]
    assert [process.wait(240) for process in torchruns] == [0, 0, 0]
    whole = weights(here, spec)
    for trial in (spec, of_nodes):
        record = read_record(trial_folder(started, trial.trial_id))
        assert record.metrics == alone.metrics
        state = weights(replace(here, store=started), trial)
        assert state.keys() == whole.keys() and all(torch.equal(state[key], whole[key]) for key in whole)


def epochs_done(folder: Path) -> int:
    return len((folder / "metrics.csv").read_text().splitlines()) - 1 if (folder / "metrics.csv").exists() else 0


def wait_for_epoch(process: subprocess.Popen[str], folder: Path, epoch: int) -> None:
    while epochs_done(folder) < epoch:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_trial_of_two_ranks_survives_a_lost_rank_and_a_signal(here, tmp_path):
    spec = RunSpec(
        model=ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs={**TINY, "drop_path_rate": 0.2}),
        data=DataSpec(batch_size=32, mixup=0.2),
        train=TrainSpec(epochs=6, devices=2, ema=0.9),
    )
    folder = trial_folder(here.store, spec.trial_id)
    start = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    first = subprocess.Popen(command(spec, here.store), **start)
    wait_for_epoch(first, folder, 1)
    others = ranks_of(first)
    os.kill(others[1], signal.SIGKILL)
    assert first.wait(60) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in others.values())
    assert "rank 1 of 2 is lost" in read_record(folder).error

    second = subprocess.Popen(command(spec, here.store), **start)
    wait_for_epoch(second, folder, 3)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 75, second.communicate()
    assert epochs_done(folder) < 6

    assert subprocess.run(command(spec, here.store), capture_output=True, check=False).returncode == 0
    whole = replace(here, store=str(tmp_path / "whole"), device="cpu")
    undisturbed = run(spec, whole)
    assert read_record(folder).metrics == undisturbed.metrics
    again = weights(here, spec)
    assert all(torch.equal(again[key], value) for key, value in weights(whole, spec).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "said", "kind"),
    [("data", "DataError: an image cannot be read", "error"), ("nan", "infinite in batch 3 of epoch 0", "NaN loss")],
)
def test_what_ends_a_trial_in_another_rank_is_in_its_record(here, tmp_path, monkeypatch, trouble, said, kind):
    (tmp_path / "trouble_in_rank_1.py").write_text(TROUBLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TROUBLE", trouble)
    spec = RunSpec(
        model=ModelSpec("cifar_resnet20", kwargs=TINY), data=DataSpec(batch_size=128), train=TrainSpec(devices=2)
    )
    with pytest.raises((DataError, FloatingPointError)):
        run(spec, replace(here, plugins="trouble_in_rank_1"))
    record = read_record(trial_folder(here.store, spec.trial_id))
    assert (record.status, record.error_kind) == ("failed", kind)
    assert said in record.error.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "minutes", "steps"), [("nan", 1e-9, 3), ("nan, told to stop", 10, 0)])
def test_no_checkpoint_holds_weights_after_a_loss_that_is_no_number(
    here, tmp_path, monkeypatch, trouble, minutes, steps
):
    (tmp_path / "trouble_in_rank_1.py").write_text(TROUBLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TROUBLE", trouble)
    spec = RunSpec(
        model=ModelSpec("cifar_resnet20", kwargs=TINY),
        data=DataSpec(batch_size=128),
        optim=OptimSpec(lr=0.3, schedule="onecycle", warmup_epochs=4),
        train=TrainSpec(epochs=10, devices=2),
    )
    execution = replace(here, plugins="trouble_in_rank_1", checkpoint_minutes=minutes)
    # the fourth step of the 24, of six an epoch, in which the rate rises to 0.3
    with pytest.raises(FloatingPointError, match=r"infinite in batch 3 of epoch 0, lr 0\.048"):
        run(spec, execution)
    folder = trial_folder(here.store, spec.trial_id)
    assert read_record(folder).status == "failed"
    assert (folder / "last.ckpt").exists() == bool(steps)
    if steps:  # taken before it
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == steps
        assert all(torch.isfinite(value).all() for value in weights(here, spec).values())


@pytest.mark.slow
def test_all_ranks_stop_in_an_evaluation_where_one_is_told(here, tmp_path):
    (tmp_path / "trouble_in_rank_1.py").write_text(TROUBLE)
    spec = RunSpec(
        model=ModelSpec("cifar_resnet20", kwargs=TINY),
        data=DataSpec(batch_size=64, val_fraction=0.4),
        train=TrainSpec(epochs=2, devices=2),
    )
    with two_ranks([*command(spec, here.store), "--plugins=trouble_in_rank_1"], tmp_path, TROUBLE="stop") as ranks:
        assert [rank.wait(120) for rank in ranks] == [75, 75]
    folder = trial_folder(here.store, spec.trial_id)
    assert not (folder / "record.json").exists()
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    # of 1,797 images half are for testing and 359 for validation; trained, and not yet validated
    assert (saved["epoch"], saved["global_step"]) == (0, 540 // 64)
    assert saved["callbacks"]["TrialKeeper"]["rows"] == []


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize("when", ["starting", "building"])
def test_all_ranks_leave_where_one_is_told_before_there_is_anything_to_save(here, tmp_path, when, told):
    (tmp_path / "slow_rank_1.py").write_text(SLOW)
    spec = RunSpec(model=ModelSpec("cifar_resnet20", kwargs=TINY), train=TrainSpec(devices=2))
    with two_ranks([*command(spec, here.store), "--plugins=slow_rank_1"], tmp_path, SLOW=f"1 {when}") as ranks:
        while not all((tmp_path / f"here-{rank}").exists() for rank in range(2)):
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[told].terminate()
        assert [rank.wait(60) for rank in ranks] == [75, 75]
    assert not trial_folder(here.store, spec.trial_id).exists()


def test_ranks_are_those_that_srun_or_torchrun_started(monkeypatch):
    train = TrainSpec(devices=2, nodes=2)
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert find_rank(TrainSpec()) == Rank()
    assert find_rank(train) is None
    slurm = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert find_rank(train) == Rank(number=3, local=1, ranks=4, slurm=True)
    with pytest.raises(SpecError, match=r"srun started 4 processes; .* need 3"):
        find_rank(TrainSpec(devices=3))
    for name, value in {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert find_rank(train) == Rank(number=2, local=0, ranks=4)
    assert find_rank(TrainSpec()) == Rank()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # else each of torchrun's processes would go for the same trial
    with pytest.raises(SpecError, match=r"torchrun started 4 processes; .* need 1"):
        find_rank(TrainSpec())


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(SpecError, match=r"data\.batch_size is 10,.*into 4 equal parts; .* 8 and 12"):
        RunSpec(data=DataSpec(batch_size=10), train=TrainSpec(devices=2, accumulate=2))
