"""The specs of an experiment: frozen dataclasses, checked against their annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from se_lab.spec.checks import SpecError, check_choice, check_fields
from se_lab.spec.ids import dotted, id_of
from se_lab.spec.reading import expand_path

INSERTIONS = ("standard", "pre", "post", "identity", "conv3x3", "none")

BUILT_IN_SETS = ("digits", "imagenet", "places365")

DATA_SETS: dict[str, Collection[str]] = {
    "table": (
        "cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "stl10", "food101", "flowers102", "oxford_pets",
        "caltech101", "eurosat",
    )
}  # fmt: skip
"""The data sets that a DataSpec accepts besides the built-in ones. `se_lab.data.table` replaces these names by its
table, so that an entry that a user adds to the table is a valid name at once."""

OPERATORS: dict[str, Collection[str]] = {
    "squeeze": ("avg", "max", "none"),
    "excitation": ("sigmoid", "tanh", "relu"),
}
"""The operators that an SESpec accepts. `se_lab.units.squeeze_excite` replaces these names by its tables, so that an
entry that a user adds to a table is a valid name at once."""

SE_DETAILS = ("reduction", "squeeze", "excitation", "bias", "start")
"""The SESpec fields that describe a unit; the others say where units go."""

UNIT_FIELDS: dict[str, Collection[str]] = {
    "se": SE_DETAILS, "ese": ("start",), "eca": (), "ceca": (), "ge": (), "ge_2": (), "ge_4": (), "ge_8": (),
    "ge_theta_2": (), "ge_theta_4": (), "ge_theta_8": (), "ge_plus_2": ("reduction", "bias"),
    "ge_plus_4": ("reduction", "bias"), "ge_plus_8": ("reduction", "bias"),
    "gc": ("reduction", "start"), "cbam": ("reduction", "bias"), "lcbam": ("reduction", "bias"),
    "coord": ("reduction", "bias"), "scoord": ("reduction", "bias"), "ela": (), "strip": (), "srm": (), "gct": (),
    "simam": (),
}  # fmt: skip
"""The units that an SESpec accepts, each with the details that affect it. Specs are read without PyTorch, so the fields
of the built-in units are repeated here; `se_lab.units.table.UNITS` adds those of a user's units."""

Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class SESpec:
    """The kind of attention unit, its settings and its position (SE paper, section 6).

    Examples:
        >>> SESpec(insertion="pre", reduction=8, stages=[4, 5]).stages
        (4, 5)
    """

    insertion: Annotated[str, INSERTIONS] = "standard"
    """Position in a block: standard, pre, post, identity (Table 14), conv3x3 (Table 15), or none (no units)."""
    unit: str = "se"
    """The kind of unit: se, or another name in se_lab.UNITS. Fields that do not affect it keep their defaults."""
    reduction: Count = 16
    """The reduction ratio r (Table 10): the hidden width is C // r, at least 1."""
    squeeze: str = "avg"
    """The squeeze operator (Tables 11 and 16): avg, max, none, or one from a plugin."""
    excitation: str = "sigmoid"
    """The final non-linearity of the gate (Table 12): sigmoid, tanh, relu, or one from a plugin."""
    stages: Literal["all"] | tuple[int, ...] = "all"
    """The stages that get units (Table 13): all, or a list such as [2, 3]. Stage 1 is the stem; ResNet has 2 to 5."""
    bias: bool = False
    """Biases in the two FC layers: absent in the paper's ablations, present in the authors' released nets."""
    units: Annotated[str, ("all", "stride_1")] = "all"
    """Blocks that get units: all, or stride_1 (those that keep the resolution; ShuffleNet's 2.4M in Table 3)."""
    start: Annotated[str, ("random", "identity")] = "random"
    """Initial weights of units: random (He et al. 2015), or identity: the gate is 0.99 (relu: 1) for every input, so
    that a pretrained net keeps its outputs. identity needs biases."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid or conflicting values."""
        check_fields(self, "model.se")
        check_choice("model.se.unit", self.unit, UNIT_FIELDS)
        check_choice("model.se.squeeze", self.squeeze, OPERATORS["squeeze"])
        check_choice("model.se.excitation", self.excitation, OPERATORS["excitation"])
        if self.insertion != "none":
            self._check_moot_details()
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

    def _check_moot_details(self) -> None:
        """Raise SpecError for a non-default detail that does not affect the unit."""
        details = [name for name in SE_DETAILS if name in UNIT_FIELDS[self.unit]]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in moot_fields(self.insertion, self.unit):
            if (value := getattr(self, name)) != defaults[name]:
                raise SpecError(
                    f"model.se.{name} is {value!r}, which has no effect on model.se.unit={self.unit}; leave it at "
                    f"{defaults[name]!r} ({self.unit} takes {', '.join(details) or 'no details'})"
                )


def moot_fields(insertion: str, unit: str) -> list[str]:
    """Return the names of the SESpec fields that have no effect with this insertion and unit."""
    if insertion == "none":
        return [f.name for f in dataclasses.fields(SESpec) if f.name != "insertion"]
    details = UNIT_FIELDS.get(unit, SE_DETAILS) if isinstance(unit, str) else SE_DETAILS  # a wrong unit is named later
    return [name for name in SE_DETAILS if name not in details]


@dataclass(frozen=True)
class ModelSpec:
    """A backbone and the units to insert into it.

    Examples:
        >>> ModelSpec("resnet50", SESpec(reduction=8)).existing_se
        'refuse'
    """

    backbone: str = "resnet50"
    """The name of a net in timm (resnet50), torchvision (torchvision:resnet50) or SE-Lab (cifar_resnet20)."""
    se: SESpec = field(default_factory=SESpec)
    """The units."""
    existing_se: Annotated[str, ("refuse", "keep", "replace")] = "refuse"
    """If the backbone has SE units already: refuse (an error), keep (add units), replace (by units of this spec)."""
    pretrained: bool | str = False
    """True for the library's pretrained weights, or the path of a file with weights of the plain backbone."""
    init: Annotated[str, ("he", "zero_init_last", "timm")] = "he"
    """Initial weights: he (He et al. 2015), zero_init_last (he, with each branch's last norm at 0), or timm."""
    init_seed: Annotated[int | None, Meta(ge=0)] = None
    """Seed of the initial weights; by default the trial's seed."""
    rounding: Annotated[int, Meta(ge=0)] = 0
    """Index of a random perturbation of the initial weights by a relative 1e-7, like rounding errors; 0 for none."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Additional arguments for timm's constructor, such as {drop_path_rate: 0.1}."""
    fused: Annotated[str, ("auto", "on", "off")] = "auto"
    """Use fused kernels for SE units: on, off, or auto (if they are faster on the device, and the trial is long enough
    to recover the time of compiling them). Parameters are the same, and results differ by rounding errors only."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid values; the name of the backbone is checked when it is built."""
        check_fields(self, "model")


@dataclass(frozen=True)
class DataSpec:
    """The data set, its splits and its augmentation.

    Examples:
        >>> DataSpec("folder:photos", image_size=64, batch_size=32).val_fraction
        0.1
    """

    name: str = "digits"
    """digits (scikit-learn's 1,797 handwritten digits), imagenet, places365; one of torchvision's sets: cifar10,
    cifar100, mnist, fashion_mnist, svhn, stl10, food101, flowers102, oxford_pets, caltech101, eurosat; a name that a
    plugin adds to se_lab.DATASETS; folder:PATH (train/ and val/ or test/, each with one folder per class);
    wds:TRAIN.tar,TEST.tar or wds:TRAIN,VAL,TEST (webdataset shards; paths, s3:// or http:// URLs, with braces such as
    {000..127}); or hf:NAME (a Hugging Face data set: a folder on disk, or streamed)."""
    image_size: Annotated[int | None, Meta(ge=8, le=65535)] = None
    """Side of the square images in pixels; the default depends on the data set: 8 for digits, 224 for folders."""
    batch_size: Count = 128
    """Global batch size of an optimizer step: it is divided among devices, nodes and accumulation steps."""
    augment: Annotated[str, ("standard", "none")] = "standard"
    """standard: the data set's usual training augmentation; none: the evaluation transform."""
    rand_augment: str = ""
    """RandAugment after crop and flip, in timm's notation, such as rand-m9-mstd0.5-inc1."""
    random_erasing: Share = 0.0
    """Probability that a rectangle of a training image is replaced by noise (Zhong et al. 2020)."""
    cutout: Annotated[int, Meta(ge=0)] = 0
    """Side in pixels of the square set to zero in each training image (DeVries & Taylor 2017); 16 for CIFAR-10."""
    mixup: Amount = 0.0
    """Alpha of mixup (Zhang et al. 2018): pairs of training images and labels are mixed, with one ratio per batch."""
    cutmix: Amount = 0.0
    """Alpha of cutmix (Yun et al. 2019); with mixup, each batch uses one of the two."""
    repeats: Count = 1
    """Repeated augmentation (Hoffer et al. 2020): number of consecutive copies of an image, each augmented
    independently; the number of images in an epoch stays the same, with fewer distinct ones."""
    crop_pct: Annotated[float, Meta(gt=0, le=1)] = 0.875
    """Centre crop of image files in evaluation, as a fraction of the short side; 224/256 in the paper (299/352 for
    Inception-ResNet-v2)."""
    val_fraction: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Fraction of the training images held out for validation if the data set has no validation split."""
    split_seed: int = 0
    """Seed of the validation split, separate from the trial's seed: all seeds of a study share one split."""
    order_seed: Annotated[int | None, Meta(ge=0)] = None
    """Seed of the order and the augmentation of the training images; by default the trial's seed."""
    on_error: Annotated[str, ("stop", "skip")] = "stop"
    """For an image that cannot be read or has a label out of range: stop (an error), or skip it and record it."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid or conflicting values."""
        check_fields(self, "data")
        if not self.name.startswith(("folder:", "wds:", "hf:")):
            _check_data_name(self.name)
        if self.rand_augment and not self.rand_augment.startswith("rand-"):
            raise SpecError(f"data.rand_augment is {self.rand_augment!r}; timm's form is rand-m9-mstd0.5-inc1")
        augmentations = [n for n in ("rand_augment", "random_erasing", "cutout", "mixup", "cutmix") if getattr(self, n)]
        if self.augment == "none" and augmentations:
            raise SpecError(f"data.augment is 'none' and data.{augmentations[0]} is set; choose one")

    @property
    def is_in_folders(self) -> bool:
        """Whether the data set consists of folders of image files."""
        return self.name in ("imagenet", "places365") or self.name.startswith("folder:")


def _check_data_name(name: str) -> None:
    """Raise SpecError for an unknown data set, with the nearest name, or 'folder:' for a path."""
    allowed = (*BUILT_IN_SETS, *DATA_SETS["table"], "folder:PATH", "wds:TRAIN.tar,TEST.tar", "hf:NAME")
    if name not in allowed and name and ("/" in name or expand_path(name).is_dir()):
        raise SpecError(f"data.name is {name!r}; for a folder of images use 'folder:{name}'")
    check_choice("data.name", name, allowed)


SCHEDULES = ("constant", "step", "multistep", "cosine", "onecycle", "plateau")


@dataclass(frozen=True)
class OptimSpec:
    """The optimizer and the learning-rate schedule.

    Examples:
        >>> OptimSpec(lr=0.05, schedule="cosine").momentum
        0.9
    """

    name: str = "sgd"
    """sgd (with momentum, as in the paper), nesterov, or any optimizer of timm, such as adamw."""
    lr: Annotated[float, Meta(gt=0)] = 0.1
    """Initial learning rate."""
    momentum: Share = 0.9
    """Momentum of sgd, nesterov and similar optimizers."""
    weight_decay: Amount = 1e-4
    """Weight decay, except for biases and norm parameters, which have none."""
    schedule: Annotated[str, SCHEDULES] = "step"
    """constant, step (every decay_epochs), multistep (at milestones), cosine, onecycle (linear per step: up to lr over
    warmup_epochs, then down to 0), or plateau (of the validation loss)."""
    decay_epochs: Count = 30
    """step: epochs between decays."""
    milestones: tuple[int, ...] = ()
    """multistep: the epochs that start with a decay."""
    decay_rate: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """step, multistep, plateau: the factor of a decay."""
    patience: Annotated[int, Meta(ge=0)] = 10
    """plateau: epochs without a lower validation loss before a decay."""
    warmup_epochs: Annotated[int, Meta(ge=0)] = 0
    """Epochs of linear warm-up."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid or conflicting values."""
        check_fields(self, "optim")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise SpecError(
                f"optim.schedule is {self.schedule!r} and optim.milestones is {list(self.milestones)!r}; "
                "the multistep schedule needs milestones, and no other schedule takes them"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise SpecError(f"optim.milestones is {list(self.milestones)!r}; it must be increasing epochs from 1 on")


@dataclass(frozen=True)
class TrainSpec:
    """The training run.

    Examples:
        >>> TrainSpec(epochs=30, precision="bf16", devices=2).ranks
        2
    """

    epochs: Count = 10
    """Number of passes over the training images."""
    label_smoothing: Annotated[float, Meta(ge=0, le=0.999)] = 0.0
    """Label smoothing of the training loss: the probability spread over all classes."""
    precision: Annotated[str, ("fp32", "bf16", "fp16", "fp64")] = "fp32"
    """Precision of the net: fp32, bf16 or fp16 (autocast; weights stay fp32), or fp64 (all in double precision)."""
    channels_last: bool = False
    """Keep images and activations in channels-last memory format, which is faster on GPUs in 16 bits."""
    clip_norm: Amount = 0.0
    """Clip the gradient's norm to this value; 0 disables clipping."""
    select: Annotated[str, ("last", "best")] = "last"
    """The weights to test: last, or best (lowest validation loss; needs a validation split)."""
    ema: Annotated[float, Meta(ge=0, le=0.9999999)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is validated and tested (0.9999 is
    usual); 0 disables it."""
    devices: Count = 1
    """Number of devices per node (DDP): GPUs, or processes on a CPU."""
    nodes: Count = 1
    """Number of nodes."""
    accumulate: Count = 1
    """Number of micro-batches per step on each device (gradient accumulation)."""
    sync_bn: bool = False
    """Compute batch norm over the images of all devices."""
    compile: bool = False
    """Compile the net with torch.compile."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid values."""
        check_fields(self, "train")

    @property
    def ranks(self) -> int:
        """The number of processes: devices times nodes."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class RunSpec:
    """All fields that can affect a trial's results; `trial_id` is their hash.

    Examples:
        >>> spec = RunSpec(model=ModelSpec("resnet50", SESpec(reduction=8)), seed=1)
        >>> spec.flat()["model.se.reduction"]
        8
        >>> len(spec.trial_id)
        12
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    """The backbone and its units."""
    data: DataSpec = field(default_factory=DataSpec)
    """The images."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    """The optimizer and its schedule."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """The training run."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Seed of the initial weights, data order, augmentation and dropout, each with a separate random stream."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid or conflicting values."""
        check_fields(self)
        if self.optim.warmup_epochs >= self.train.epochs and self.optim.warmup_epochs:
            raise SpecError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs} and train.epochs is {self.train.epochs}; the "
                "warm-up must end before the training does"
            )
        if self.data.batch_size % (parts := self.train.ranks * self.train.accumulate):
            lower_size = self.data.batch_size - self.data.batch_size % parts
            raise SpecError(
                f"data.batch_size is {self.data.batch_size}, the global batch size of a step, which train.devices, "
                f"nodes and accumulate divide into {parts} equal parts; the nearest valid sizes are "
                f"{' and '.join(str(size) for size in (lower_size, lower_size + parts) if size)}"
            )
        if self.data.val_fraction == 0 and self.data.name in (*BUILT_IN_SETS, "cifar10", "cifar100"):
            for key, needs in (
                ("optim.schedule", self.optim.schedule == "plateau"),
                ("train.select", self.train.select == "best"),
            ):
                if needs:
                    raise SpecError(
                        f"{key} is {self.flat()[key]!r}, which needs validation images, and data.val_fraction is 0; "
                        "set data.val_fraction above 0, or choose another value: test images are never used for this"
                    )

    def flat(self) -> dict[str, Any]:
        """Return all fields as {dotted key: JSON value}; SE fields that have no effect are None."""
        return dotted(self) | dict.fromkeys(self._moot)

    @property
    def _moot(self) -> list[str]:
        return [f"model.se.{name}" for name in moot_fields(self.model.se.insertion, self.model.se.unit)]

    @property
    def trial_id(self) -> str:
        """12 hexadecimal digits: the hash of SPEC_VERSION and all non-default fields."""
        default = dotted(_DEFAULT)
        moot = self._moot
        changes = {key: value for key, value in dotted(self).items() if key not in moot and value != default[key]}
        return id_of(changes)


_DEFAULT = RunSpec()
