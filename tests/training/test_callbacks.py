"""SE units in a LightningModule of one's own."""

from __future__ import annotations

import lightning as L
import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from se_lab import InsertSE, SESpec, SpecError


class Mine(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm.create_model("cifar_resnet20", units=1, num_classes=3, in_chans=1)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_units_are_inserted_before_optimizers_and_weights(tmp_path):
    loader = DataLoader(TensorDataset(torch.randn(6, 1, 8, 8), torch.arange(6) % 3), batch_size=3)

    def fit(epochs, **options):
        insert, task = InsertSE(SESpec(reduction=4), net="net"), Mine()
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[insert], logger=False,
            enable_progress_bar=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(task, loader, **options)
        return trainer, insert, task

    trainer, insert, task = fit(1)
    assert len(insert.sites) == 3
    trained = {id(weight) for group in trainer.optimizers[0].param_groups for weight in group["params"]}
    units = [task.net.get_submodule(site.path) for site in insert.sites]
    assert all(id(weight) in trained for unit in units for weight in unit.parameters())
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    again = fit(2, ckpt_path=tmp_path / "mine.ckpt")[0]
    assert again.global_step == 4


def test_a_callback_inserts_into_each_module_that_it_meets_and_once_into_one():
    insert, first, second = InsertSE(SESpec(reduction=4), net="net"), Mine(), Mine()
    for module in (first, first, second):
        insert.setup(None, module, "fit")
    plain = sum(weight.numel() for weight in Mine().parameters())
    added = [sum(weight.numel() for weight in module.parameters()) - plain for module in (first, second)]
    assert added == [2 * (16 * 4 + 32 * 8 + 64 * 16)] * 2  # two FC layers of C × C/4 a unit


def test_an_equal_second_callback_keeps_the_units_and_another_is_refused():
    module = Mine()
    InsertSE(SESpec(reduction=4), net="net").setup(None, module, "fit")
    keys = set(module.state_dict())
    again = InsertSE(SESpec(reduction=4), net="net")
    again.setup(None, module, "test")
    assert set(module.state_dict()) == keys and len(again.sites) == 3
    with pytest.raises(SpecError):
        InsertSE(SESpec(reduction=8), net="net").setup(None, module, "test")


def test_an_example_tells_the_channels_of_modules_that_do_not_say_them():
    insert, module = InsertSE(SESpec(reduction=4), net="net", at=["layer1"], example=torch.zeros(1, 1, 8, 8)), Mine()
    insert.setup(None, module, "fit")
    assert [site.channels for site in insert.sites] == [16]
