"""A trial as a plain Lightning script, for comparison in sweep.py.

Uses torchvision's CIFAR10 and transforms, a DataLoader with two workers, Lightning's Trainer with defaults, and W&B's
logger offline. The net is SE-Lab's, with the same initial weights. `--digits FILE` trains on tensors and in an order
written by SE-Lab, to compare the results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from se_lab import ModelSpec, SESpec, create_model


class Plain(L.LightningModule):
    def __init__(self, options: argparse.Namespace, in_chans: int) -> None:
        super().__init__()
        self.options = options
        spec = ModelSpec("cifar_resnet20", SESpec(reduction=options.reduction))
        self.model = create_model(spec, 10, in_chans, seed=options.seed)
        self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(10, average="micro"),
            MulticlassAccuracy(10, average="micro"),
        )

    def training_step(self, batch, index):
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.evaluate("val", self.val_accuracy, batch)

    def test_step(self, batch, index):
        self.evaluate("test", self.test_accuracy, batch)

    def evaluate(self, split, accuracy, batch):
        images, labels = batch
        logits = self.model(images)
        accuracy(logits, labels)
        self.log(f"{split}/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{split}/accuracy", accuracy)

    def configure_optimizers(self):
        decay = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=self.options.lr, momentum=0.9, weight_decay=1e-4)


class Order(torch.utils.data.Sampler):
    """A list of image numbers for each epoch."""

    def __init__(self, epochs: list[list[int]]) -> None:
        self.epochs, self.epoch = epochs, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter(self.epochs[self.epoch])

    def __len__(self):
        return len(self.epochs[0])


def cifar(options: argparse.Namespace) -> list[DataLoader]:
    import random_cifar  # noqa: F401 (written by sweep.py, to skip torchvision's check of the files)
    from torchvision import transforms as T
    from torchvision.datasets import CIFAR10

    normalise = [T.ToTensor(), T.Normalize((0.5, 0.5, 0.5), (0.29, 0.29, 0.29))]
    augment = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), *normalise])
    plain = T.Compose(normalise)
    numbers = torch.randperm(options.images + options.val_images, generator=torch.Generator().manual_seed(0)).tolist()
    train = Subset(CIFAR10(options.root, transform=augment), numbers[: options.images])
    val = Subset(CIFAR10(options.root, transform=plain), numbers[options.images :])
    test = CIFAR10(options.root, train=False, transform=plain)
    keep = {"batch_size": 128, "num_workers": 2, "persistent_workers": True}
    shuffled = DataLoader(train, shuffle=True, drop_last=True, **keep)
    return [shuffled, DataLoader(val, **keep), DataLoader(test, **keep)]


def digits(options: argparse.Namespace) -> list[DataLoader]:
    given = torch.load(options.digits, weights_only=True)
    sets = [TensorDataset(*given[split]) for split in ("train", "val", "test")]
    train = DataLoader(sets[0], batch_size=128, sampler=Order(given["order"]), drop_last=True)
    return [train, *(DataLoader(one, batch_size=128) for one in sets[1:])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reduction", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--val_images", type=int, default=0)
    parser.add_argument("--root", default=".")
    parser.add_argument("--digits")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of PyTorch; by default all cores")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    L.seed_everything(options.seed, verbose=False)
    train, val, test = digits(options) if options.digits else cifar(options)
    folder = Path(options.out)
    folder.mkdir(parents=True)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator=options.device,
        precision=options.precision,
        logger=WandbLogger(project="plain", save_dir=folder, offline=True),
        default_root_dir=folder,
    )
    task = Plain(options, 1 if options.digits else 3)
    trainer.fit(task, train, val)
    (metrics,) = trainer.test(task, test)
    (folder / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
