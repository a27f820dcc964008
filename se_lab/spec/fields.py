"""What an experiment is: frozen dataclasses, their checks, and the trial id that is their content."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

SPEC_VERSION = 1
"""Part of every trial id. It goes up when a default or a meaning changes, so that old trials keep their own ids."""

INSERTIONS = ("standard", "pre", "post", "identity", "conv3x3", "none")

BUILT_IN_SETS = ("digits", "imagenet", "places365")

DATA_SETS: dict[str, Collection[str]] = {
    "table": (
        "cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "stl10", "food101", "flowers102", "oxford_pets",
        "caltech101", "eurosat",
    )
}  # fmt: skip
"""The names of data sets that a DataSpec accepts beside the built-in ones. `se_lab.data.table` puts its table here in
place of these names, so that an entry a user adds to the table is a valid name at once."""

OPERATORS: dict[str, Collection[str]] = {
    "squeeze": ("avg", "max", "none"),
    "excitation": ("sigmoid", "tanh", "relu"),
}
"""The operator names an SESpec accepts. `se_lab.units.squeeze_excite` puts its tables here in place of these names,
so that an entry a user adds to a table is a valid name at once."""

SE_DETAILS = ("reduction", "squeeze", "excitation", "bias", "start")
"""The SESpec fields that describe a unit; the others say where units go."""

UNIT_FIELDS: dict[str, Collection[str]] = {"se": SE_DETAILS}
"""The names of units that an SESpec accepts, each with the details that can change it. Specs are read without PyTorch,
so the fields of the built-in units are repeated here; `se_lab.units.table.UNITS` writes those of a user's own units."""

SEEDS = (-(2**63), 2**64 - 1)
"""The least and the largest seed that PyTorch takes; no other field has a use for a larger integer."""

T = TypeVar("T")


class SpecError(ValueError):
    """A value no experiment can have: it says what was given, what is allowed, and the nearest."""


def check_choice(name: str, given: object, allowed: Collection[str]) -> None:
    """Raise SpecError unless `given` is one of `allowed`, naming the nearest."""
    if given in allowed:
        return
    raise SpecError(f"{name} is {given!r}; allowed are {', '.join(map(str, allowed))}{nearest(str(given), allowed)}")


def nearest(given: str, allowed: Collection[str]) -> str:
    """Return '; did you mean …?' for a name that resembles an allowed one, else the empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def seed_of(*key: int | str) -> int:
    """Return the 63-bit seed of the random stream named by `key`, such as (seed, "order", epoch).

    Streams are keyed, not shared: what one part of a trial draws never shifts what another part draws.
    """
    text = json.dumps(key, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _check_range(
    name: str, value: float, *, low: float = SEEDS[0], high: float = math.inf, open_low: bool = False
) -> None:
    most = min(high, SEEDS[1]) if isinstance(value, int) else high
    if (value > low if open_low else value >= low) and value <= most:
        return
    least, most_said = (str(bound) if isinstance(bound, int) else f"{bound:g}" for bound in (low, most))
    upper = f" and at most {most_said}" if high < math.inf or value > most else ""
    raise SpecError(f"{name} is {value!r}; it must be {'above' if open_low else 'at least'} {least}{upper}")


@dataclass(frozen=True)
class SESpec:
    """Which attention unit, and where: the axes of the SE paper's ablations (section 6), and the kind of unit."""

    insertion: str = "standard"
    """Where in a block: standard, pre, post, identity (Table 14), conv3x3 (Table 15), or none: the plain backbone."""
    unit: str = "se"
    """The kind of unit: se, or another name in se_lab.UNITS. Fields that cannot change it keep their defaults."""
    reduction: int = 16
    """The reduction ratio r (Table 10): the hidden width is C // r, at least 1."""
    squeeze: str = "avg"
    """The squeeze operator (Tables 11 and 16): avg, max, none, or a name a plugin adds."""
    excitation: str = "sigmoid"
    """The final non-linearity of the gate (Table 12): sigmoid, tanh, relu, or a name a plugin adds."""
    stages: Literal["all"] | tuple[int, ...] = "all"
    """The stages that get units (Table 13): all, or a list such as [2, 3]. Stage 1 is the stem, ResNet has 2 to 5."""
    bias: bool = False
    """Biases in the two FC layers: the paper's ablations have none, the authors' released nets do."""
    units: str = "all"
    """Which units of a stage: all, or stride_1, those that keep the resolution (ShuffleNet's printed 2.4M, Table 3)."""
    start: str = "random"
    """How a unit starts: random (He et al. 2015), or identity: its gate at 0.99 (relu: 1) for every input, so that a
    pretrained net starts as it was. identity needs biases."""

    def __post_init__(self) -> None:
        """Refuse what no unit can be."""
        _coerce_fields(self, "model.se")
        check_choice("model.se.insertion", self.insertion, INSERTIONS)
        check_choice("model.se.unit", self.unit, UNIT_FIELDS)
        check_choice("model.se.squeeze", self.squeeze, OPERATORS["squeeze"])
        check_choice("model.se.excitation", self.excitation, OPERATORS["excitation"])
        check_choice("model.se.units", self.units, ("all", "stride_1"))
        check_choice("model.se.start", self.start, ("random", "identity"))
        _check_range("model.se.reduction", self.reduction, low=1)
        if self.insertion != "none":
            self._refuse_moot_details()
        has_identity = self.unit != "se" or (self.bias and self.excitation in ("sigmoid", "tanh", "relu"))
        if self.start == "identity" and not has_identity:
            raise SpecError(
                f"model.se.start is 'identity' with model.se.bias={str(self.bias).lower()} and model.se.excitation="
                f"{self.excitation}; it needs model.se.bias=true and one of sigmoid, tanh, relu"
            )
        if self.stages != "all":
            stages = tuple(sorted(set(self.stages)))
            if not stages or stages[0] < 2:
                raise SpecError(
                    f"model.se.stages is {list(self.stages)!r}; it must be all or a list of stages from 2 on "
                    "(stage 1 is the stem; for a net without SE units set model.se.insertion=none)"
                )
            object.__setattr__(self, "stages", stages)

    def _refuse_moot_details(self) -> None:
        """Raise SpecError for a detail that this unit does not have: it would make two trials of one net."""
        has = [name for name in SE_DETAILS if name in UNIT_FIELDS[self.unit]]
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        for name in moot_fields(self.insertion, self.unit):
            if (given := getattr(self, name)) != usual[name]:
                raise SpecError(
                    f"model.se.{name} is {given!r}, which changes nothing about model.se.unit={self.unit}; leave it at "
                    f"{usual[name]!r} ({self.unit} takes {', '.join(has) or 'no details'})"
                )


def moot_fields(insertion: str, unit: str) -> list[str]:
    """Return the SESpec fields that cannot change a net: with insertion none all others, else what the unit lacks."""
    if insertion == "none":
        return [f.name for f in dataclasses.fields(SESpec) if f.name != "insertion"]
    has = UNIT_FIELDS.get(unit, SE_DETAILS) if isinstance(unit, str) else SE_DETAILS  # a wrong unit is named later
    return [name for name in SE_DETAILS if name not in has]


@dataclass(frozen=True)
class ModelSpec:
    """A timm backbone and the SE units put into it."""

    backbone: str = "resnet50"
    """Any timm model name, or one of SE-Lab's own (cifar_resnet20 …)."""
    se: SESpec = field(default_factory=SESpec)
    """The SE units."""
    existing_se: str = "refuse"
    """A backbone with SE of its own is refused, or keep: ours come in addition, or replace: its units become ours."""
    pretrained: bool | str = False
    """True: timm's pretrained weights; a path: a checkpoint of the plain backbone."""
    init: str = "he"
    """Start of the weights: he (He et al. 2015), zero_init_last (He, and each branch's last norm at 0), or timm."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's constructor, such as {drop_path_rate: 0.1}."""
    fused: str = "auto"
    """SE units as few passes over memory: on, off, or auto: where that is proven faster on the device, in steps that
    have work enough, and the trial is long enough to pay for compiling. The same parameters and, but for rounding, the
    same numbers."""

    def __post_init__(self) -> None:
        """Refuse unknown choices; whether the backbone exists is asked of timm when it is built."""
        _coerce_fields(self, "model")
        check_choice("model.existing_se", self.existing_se, ("refuse", "keep", "replace"))
        check_choice("model.init", self.init, ("he", "zero_init_last", "timm"))
        check_choice("model.fused", self.fused, ("auto", "on", "off"))


@dataclass(frozen=True)
class DataSpec:
    """The images, how they are split, and how they reach the net."""

    name: str = "digits"
    """digits (scikit-learn's 1,797 handwritten digits), imagenet, places365; one of torchvision's sets: cifar10,
    cifar100, mnist, fashion_mnist, svhn, stl10, food101, flowers102, oxford_pets, caltech101, eurosat; a name that a
    plugin adds to se_lab.DATASETS; folder:PATH (train/ and val/ or test/, each with a folder for each class),
    wds:TRAIN.tar,TEST.tar (webdataset shards, or TRAIN,VAL,TEST; with braces such as {000..127}, and s3:// and http://
    addresses), or hf:NAME (a Hugging Face data set: a folder on disk, or streamed)."""
    image_size: int | None = None
    """Side of the square images in pixels; by default the data set's own: 8 for digits, 224 for folders."""
    batch_size: int = 128
    """Images a training step."""
    augment: str = "standard"
    """standard: the data set's usual training augmentation; none: the evaluation transform."""
    rand_augment: str = ""
    """RandAugment after crop and flip, in timm's words, such as rand-m9-mstd0.5-inc1."""
    random_erasing: float = 0.0
    """Probability that a rectangle of a training image becomes noise (Zhong et al. 2020)."""
    cutout: int = 0
    """Side in pixels of the square that is zeroed in each training image (DeVries & Taylor 2017); 16 on CIFAR-10."""
    mixup: float = 0.0
    """Alpha of mixup (Zhang et al. 2018): training images and labels are mixed in pairs, a share a batch."""
    cutmix: float = 0.0
    """Alpha of cutmix (Yun et al. 2019); with mixup, each batch has one or the other."""
    repeats: int = 1
    """Repeated augmentation (Hoffer et al. 2020): times that an image comes in a row, augmented anew; an epoch has as
    many images as without, of fewer originals."""
    crop_pct: float = 0.875
    """Evaluation of files: the centre crop's share of the short side, 224/256 in the paper (299/352 for
    Inception-ResNet-v2)."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation, where the data set has no validation split of its own."""
    split_seed: int = 0
    """Seeds the split, apart from the trial's seed: all seeds of a study share one split."""
    on_error: str = "stop"
    """An image that cannot be read, or has a label out of range: stop, or skip it, count it and record it."""

    def __post_init__(self) -> None:
        """Refuse what no loader can serve."""
        _coerce_fields(self, "data")
        if not self.name.startswith(("folder:", "wds:", "hf:")):
            _check_data_name(self.name)
        _check_range("data.crop_pct", self.crop_pct, low=0, high=1, open_low=True)
        if self.image_size is not None:
            _check_range("data.image_size", self.image_size, low=8, high=65535)  # a JPEG's longest side
        _check_range("data.batch_size", self.batch_size, low=1)
        _check_range("data.split_seed", self.split_seed)
        _check_range("data.val_fraction", self.val_fraction, low=0, high=0.5)
        check_choice("data.augment", self.augment, ("standard", "none"))
        check_choice("data.on_error", self.on_error, ("stop", "skip"))
        for name in ("cutout", "mixup", "cutmix"):
            _check_range(f"data.{name}", getattr(self, name), low=0)
        _check_range("data.random_erasing", self.random_erasing, low=0, high=1)
        _check_range("data.repeats", self.repeats, low=1)
        if self.rand_augment and not self.rand_augment.startswith("rand-"):
            raise SpecError(f"data.rand_augment is {self.rand_augment!r}; timm's form is rand-m9-mstd0.5-inc1")
        on = [n for n in ("rand_augment", "random_erasing", "cutout", "mixup", "cutmix") if getattr(self, n)]
        if self.augment == "none" and on:
            raise SpecError(f"data.augment is 'none', and data.{on[0]} is on; choose one")


def _check_data_name(name: str) -> None:
    """Raise SpecError for a name that no data set has, with the nearest, or the folder's own form."""
    allowed = (*BUILT_IN_SETS, *DATA_SETS["table"], "folder:PATH", "wds:TRAIN.tar,TEST.tar", "hf:NAME")
    if name not in allowed and name and ("/" in name or Path(name).expanduser().is_dir()):
        raise SpecError(f"data.name is {name!r}; a folder of images is given as 'folder:{name}'")
    check_choice("data.name", name, allowed)


@dataclass(frozen=True)
class OptimSpec:
    """Optimizer and learning-rate schedule."""

    name: str = "sgd"
    """sgd (with momentum, as the paper), nesterov, or any optimizer name of timm's, such as adamw."""
    lr: float = 0.1
    """Initial learning rate."""
    momentum: float = 0.9
    """Momentum of sgd and its kin."""
    weight_decay: float = 1e-4
    """Weight decay of weights; biases and norm parameters have none."""
    schedule: str = "step"
    """constant, step (every decay_epochs), multistep (at milestones), cosine, onecycle (up to lr over warmup_epochs and
    down to 0, both linearly, a step at a time), or plateau (of the validation loss)."""
    decay_epochs: int = 30
    """step: epochs between drops."""
    milestones: tuple[int, ...] = ()
    """multistep: the epochs that begin with a drop."""
    decay_rate: float = 0.1
    """step, multistep, plateau: the factor of a drop."""
    patience: int = 10
    """plateau: epochs without a lower validation loss before a drop."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""

    def __post_init__(self) -> None:
        """Refuse what no optimizer can follow."""
        _coerce_fields(self, "optim")
        check_choice(
            "optim.schedule", self.schedule, ("constant", "step", "multistep", "cosine", "onecycle", "plateau")
        )
        _check_range("optim.lr", self.lr, low=0, open_low=True)
        _check_range("optim.momentum", self.momentum, low=0, high=1)
        _check_range("optim.weight_decay", self.weight_decay, low=0)
        _check_range("optim.decay_epochs", self.decay_epochs, low=1)
        _check_range("optim.decay_rate", self.decay_rate, low=0, high=1, open_low=True)
        _check_range("optim.patience", self.patience, low=0)
        _check_range("optim.warmup_epochs", self.warmup_epochs, low=0)
        if (self.schedule == "multistep") != bool(self.milestones):
            raise SpecError(
                f"optim.schedule is {self.schedule!r} and optim.milestones is {list(self.milestones)!r}; "
                "milestones belong to the multistep schedule, and it needs them"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise SpecError(f"optim.milestones is {list(self.milestones)!r}; it must be rising epochs from 1 on")


@dataclass(frozen=True)
class TrainSpec:
    """The training run."""

    epochs: int = 10
    """Passes over the training images."""
    label_smoothing: float = 0.0
    """Probability mass the loss spreads over all classes (training only)."""
    precision: str = "fp32"
    """fp32, bf16 or fp16: the arithmetic of the net (autocast); weights stay fp32. fp64: everything in double."""
    channels_last: bool = False
    """Keep images and activations in channels-last memory order, which GPUs prefer in 16 bits."""
    clip_norm: float = 0.0
    """Clip the gradient's norm to this; 0 does not."""
    select: str = "last"
    """The weights that are tested: last, or best (lowest validation loss; needs a validation split)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, a step at a time, which is what is validated and tested
    (0.9999 is usual); 0 keeps none."""
    devices: int = 1
    """Devices of a node that share every batch (DDP): GPUs, or processes on a CPU."""
    nodes: int = 1
    """Nodes that share every batch."""
    accumulate: int = 1
    """Micro-batches that a device takes its share of a batch in, one after the other."""
    sync_bn: bool = False
    """Batch norms see the images of all devices, not only their own."""
    compile: bool = False
    """Compile the net with torch.compile."""

    def __post_init__(self) -> None:
        """Refuse what no run can be."""
        _coerce_fields(self, "train")
        _check_range("train.epochs", self.epochs, low=1)
        _check_range("train.label_smoothing", self.label_smoothing, low=0, high=0.999)
        check_choice("train.precision", self.precision, ("fp32", "bf16", "fp16", "fp64"))
        _check_range("train.clip_norm", self.clip_norm, low=0)
        check_choice("train.select", self.select, ("last", "best"))
        _check_range("train.ema", self.ema, low=0, high=0.9999999)
        for name in ("devices", "nodes", "accumulate"):
            _check_range(f"train.{name}", getattr(self, name), low=1)

    @property
    def ranks(self) -> int:
        """Processes that share every batch."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class RunSpec:
    """Everything that can change a number of a trial. Its content is its name: `trial_id`."""

    model: ModelSpec = field(default_factory=ModelSpec)
    """The net."""
    data: DataSpec = field(default_factory=DataSpec)
    """The images."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    """The optimizer."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """The training run."""
    seed: int = 0
    """Seeds weights, data order, augmentation and dropout, each a stream of its own."""

    def __post_init__(self) -> None:
        """Refuse fields that do not go together, such as ones that would let a test image decide something."""
        _coerce_fields(self, "")
        _check_range("seed", self.seed, low=0)
        if self.optim.warmup_epochs >= self.train.epochs and self.optim.warmup_epochs:
            raise SpecError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs} and train.epochs is {self.train.epochs}; the "
                "warm-up must end before the training does"
            )
        if self.data.batch_size % (parts := self.train.ranks * self.train.accumulate):
            below = self.data.batch_size - self.data.batch_size % parts
            raise SpecError(
                f"data.batch_size is {self.data.batch_size}, the images of a step in all, and train.devices, nodes and "
                f"accumulate deal it out in {parts} equal parts; the nearest that can be are "
                f"{' and '.join(str(size) for size in (below, below + parts) if size)}"
            )
        if self.data.val_fraction == 0 and self.data.name in (*BUILT_IN_SETS, "cifar10", "cifar100"):
            for key, needs in (
                ("optim.schedule", self.optim.schedule == "plateau"),
                ("train.select", self.train.select == "best"),
            ):
                if needs:
                    raise SpecError(
                        f"{key} is {self.flat()[key]!r}, which looks at validation images, and data.val_fraction is 0; "
                        "hold images out for validation, or choose without them: no test image decides anything"
                    )

    def flat(self) -> dict[str, Any]:
        """Return every field under its dotted key, as JSON values; None stands for an SE field that cannot matter."""
        return dotted(self) | dict.fromkeys(self._moot)

    @property
    def _moot(self) -> list[str]:
        return [f"model.se.{name}" for name in moot_fields(self.model.se.insertion, self.model.se.unit)]

    @property
    def trial_id(self) -> str:
        """12 hexadecimal digits: the hash of the fields that differ from their defaults, and of SPEC_VERSION."""
        default = dotted(_DEFAULT)
        moot = self._moot
        changed = {key: value for key, value in dotted(self).items() if key not in moot and value != default[key]}
        text = json.dumps({"spec_version": SPEC_VERSION} | changed, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ExecSpec:
    """Where and how a trial runs: recorded, not part of the trial id, since it changes no number."""

    store: str = field(default_factory=lambda: os.environ.get("SE_LAB_STORE", "runs"))
    """The folder of trials; by default the variable SE_LAB_STORE, else runs."""
    device: str = "auto"
    """auto, cpu, cuda, or mps."""
    threads: int = 1
    """CPU threads of a trial. Sums of floats depend on it, so a store is best filled with one value throughout."""
    data_root: str = field(default_factory=lambda: os.environ.get("SE_LAB_DATA", "."))
    """The folder that relative data paths start from; by default the variable SE_LAB_DATA, else the current one."""
    download: bool = False
    """Fetch one of torchvision's data sets into data_root where it is missing."""
    data_workers: int = 2
    """Loader processes for data sets read from files."""
    wandb: bool = True
    """Log to W&B: offline, unless WANDB_MODE or WANDB_SWEEP_ID says otherwise."""
    project: str = "se-lab"
    """The W&B project."""
    plugins: str = ""
    """Modules to import first, separated by commas, such as one that adds a squeeze operator."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; each epoch ends with one anyway."""
    recipe: str = ""
    """The recipe of SE-Lab's that was read first; the record says what differs from it."""

    def __post_init__(self) -> None:
        """Refuse what no machine can do."""
        _coerce_fields(self, "")
        check_choice("device", self.device, ("auto", "cpu", "cuda", "mps"))
        if not self.store:
            raise SpecError("store is ''; it must be a folder, such as runs")
        _check_range("threads", self.threads, low=1, high=1024)
        _check_range("data_workers", self.data_workers, low=0, high=1024)
        _check_range("checkpoint_minutes", self.checkpoint_minutes, low=0, open_low=True)


def label(trial: RunSpec) -> str:
    """Return a trial in few words: 'cifar_resnet20 standard r=4, seed 1', 'resnet50 eca standard, seed 0'."""
    se = trial.model.se
    if se.insertion == "none":
        return f"{trial.model.backbone} no SE, seed {trial.seed}"
    words = [trial.model.backbone, *([] if se.unit == "se" else [se.unit]), se.insertion]
    if "reduction" not in moot_fields(se.insertion, se.unit):
        words.append(f"r={se.reduction}")
    words += [value for value, usual in ((se.squeeze, "avg"), (se.excitation, "sigmoid")) if value != usual]
    if se.stages != "all":
        words.append(f"stages {','.join(map(str, se.stages))}")
    return f"{' '.join(words)}, seed {trial.seed}"


def run_spec(values: Mapping[str, Any]) -> RunSpec:
    """Build a RunSpec from dotted keys (`model.se.reduction`) and whole sections (`model.se: {…}`).

    Raises:
        SpecError: for a key that no field has, a value no field can hold, or a section given both ways.
    """
    nested: dict[str, Any] = {}
    for key, value in leaves(values).items():
        *path, name = key.split(".")
        target = nested
        for part in path:
            target = target.setdefault(part, {})
        target[name] = value
    return _build(RunSpec, nested)


def trial_of(common: RunSpec, point: Mapping[str, Any]) -> RunSpec:
    """Return the trial of a point of a sweep: `common` with the point's values.

    In a grid over `model.se.unit` and a detail, such as the reduction ratio, a unit without that detail keeps the
    default: all points of the detail are one trial. A mapping that gives both together is a mistake.

    Raises:
        SpecError: for a value its field cannot hold, or values that do not go together.
    """
    found = leaves(point)
    values = dotted(common) | found
    sections = [key for key in point if key not in found]
    source = {key: next((section for section in sections if key.startswith(f"{section}.")), key) for key in values}
    for name in moot_fields(values["model.se.insertion"], values["model.se.unit"]):
        key = f"model.se.{name}"
        if values["model.se.insertion"] != "none" and source[key] != source["model.se.unit"]:
            values[key] = getattr(SESpec(), name)
    return run_spec(values)


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Spread dotted keys and whole sections into one dotted key a field.

    Raises:
        SpecError: for a key that no field has, or a section given both ways.
    """
    known = dotted(_DEFAULT)
    sections = {key[:end] for key in known for end in range(len(key)) if key[end] == "."}
    found: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if key in sections:
            if not isinstance(value, Mapping):
                raise SpecError(f"{key} is {value!r}; it takes a mapping of its fields, or dotted keys such as {key}.…")
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
        elif key not in known:
            raise SpecError(f"no field is called {key!r}{nearest(key, known)}")
        else:
            found[key] = value

    for key, value in values.items():
        if whole := [section for section in values if key.startswith(f"{section}.")]:
            raise SpecError(
                f"{key} is given twice: its section {whole[0]} is given whole as well; write one of the two"
            )
        add(key, value)
    return found


def fields_of(spec: object) -> list[tuple[str, Any]]:
    """Return the (name, value) pairs of a dataclass instance."""
    return [(f.name, getattr(spec, f.name)) for f in dataclasses.fields(cast(Any, spec))]


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = _hints(cast(Hashable, cls))
    if cls is SESpec:  # flat() writes None for what is moot
        moot = moot_fields(values.get("insertion", "standard"), values.get("unit", "se"))
        values = {key: value for key, value in values.items() if value is not None or key not in moot}
    return cls(**{k: _build(hints[k], v) if dataclasses.is_dataclass(hints[k]) else v for k, v in values.items()})


def dotted(spec: object, prefix: str = "") -> dict[str, Any]:
    """Return the fields of a nested dataclass under their dotted keys, as JSON values."""
    flat: dict[str, Any] = {}
    for name, value in fields_of(spec):
        if dataclasses.is_dataclass(value):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _coerce_fields(spec: object, section: str) -> None:
    """Bring every field to its declared type (a YAML list to a tuple, 1 to 1.0), or raise SpecError."""
    for name, value in fields_of(spec):
        hint = _hints(cast(Hashable, type(spec)))[name]
        try:
            coerced = _coerce(value, hint)
        except (TypeError, ValueError, OverflowError):  # of a number that no float holds
            key = f"{section}.{name}" if section else name
            raise SpecError(f"{key} is {value!r}; it must be {_describe(hint)}") from None
        object.__setattr__(spec, name, coerced)


def _coerce(value: Any, hint: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()  # a NumPy scalar, as search engines hand out
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _coerce(value, option)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_coerce(item, args[0]) for item in value)
    elif origin is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):  # YAML reads 1e-3 as a string
            number = float(value)
            if math.isfinite(number):
                return number
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    raise TypeError


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin is tuple:
        return f"a list of {_describe(args[0]).removeprefix('an ').removeprefix('a ')}s"
    names = {float: "a finite number", int: "an integer", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, "a mapping")


_DEFAULT = RunSpec()
