"""The private names of Lightning's that SE-Lab uses: each in one module, and still what it was taken for."""

from __future__ import annotations

import ast
import inspect
import signal
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.trainer.connectors import signal_connector

import se_lab
from se_lab.training.checkpoints import restart_validation
from se_lab.training.trainer import _disable_signal_handlers

PRIVATE = {"_signal_connector": "training/trainer.py", "_broadcast_sigterm_tensor": "training/trainer.py"}
"""Attributes of Lightning's Trainer and its loops that start with an underscore, and where they are used."""


def test_no_other_private_name_of_the_trainer_is_used():
    root = Path(se_lab.__file__).parent
    used: Counter[tuple[str, str]] = Counter()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            if ast.unparse(node.value).split(".")[0] in ("trainer", "loop") or "trainer." in ast.unparse(node.value):
                used[node.attr, path.relative_to(root).as_posix()] += 1
    assert used == Counter(dict.fromkeys(PRIVATE.items(), 1))


@pytest.fixture
def trainer(tmp_path):
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **options)


def test_lightning_registers_no_handler_of_signals(trainer, monkeypatch):
    asked = []
    monkeypatch.setattr(signal_connector.signal, "signal", lambda number, handler: asked.append(number))
    trainer._signal_connector.register_signal_handlers()
    assert signal.SIGTERM in asked  # what SE-Lab keeps it from
    asked.clear()
    _disable_signal_handlers(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert asked == []
    # and Lightning calls it under that name, once a fit or a test
    assert "_signal_connector.register_signal_handlers()" in inspect.getsource(type(trainer)._run)


def test_lightnings_loop_broadcasts_nothing_before_a_step(trainer):
    loop = trainer.fit_loop.epoch_loop
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)
    _disable_signal_handlers(trainer)
    loop._broadcast_sigterm_tensor()  # with ranks it would wait for the others


def test_a_checkpoint_of_a_validation_has_the_keys_that_are_reset(trainer):
    state = trainer.fit_loop.state_dict()
    checkpoint = {"loops": {"fit_loop": dict(state)}}
    restart_validation(checkpoint)
    changed = checkpoint["loops"]["fit_loop"]
    assert changed.keys() == state.keys()
    key = "epoch_loop.val_loop.batch_progress"
    assert changed[key].keys() == state[key].keys() and changed[key]["total"].keys() == state[key]["total"].keys()
