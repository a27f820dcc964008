"""Sweep specs of tiny trials, and the real `wandb` command that runs them (against the fixture `server`)."""

import subprocess
import sys
import time

import yaml

from tests.sweep.wandb_server import ENTITY

QUICK = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=512", "--model.kwargs={units: 1}"]
SLOW = "--callbacks=pace.FirstRunSlow"
"""For trials that outlast what a test does to them; with the fixture `pace`."""
SWEEP = {
    "name": "tiny",
    "program": "se-lab",
    "method": "grid",
    "project": "lab",
    "command": ["${env}", "se-lab", "train", *QUICK, "${args}"],
    "parameters": {"model.se": {"values": [{"insertion": "none"}, {"reduction": 4}]}, "seed": {"values": [0, 1, 2]}},
}


def write(folder, **changes):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return path


def wandb(*arguments):
    return [sys.executable, "-W", "ignore", "-m", "wandb", *arguments]


def agent(sweep, *more):
    return subprocess.Popen(
        wandb("agent", "-f", *more, f"{ENTITY}/lab/{sweep}"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def alike(table):
    """Return a table without what names its place, its rows and columns in one order."""
    return table.drop(columns="folder").sort_values("trial_id", ignore_index=True).sort_index(axis=1)


def until(true, seconds=240):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
