"""The specs of an experiment: frozen dataclasses whose fields are checked by their annotations."""

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

UNIT_FIELDS: dict[str, Collection[str]] = {
    "se": SE_DETAILS, "ese": ("start",), "eca": (), "ceca": (), "ge": (), "ge_2": (), "ge_4": (), "ge_8": (),
    "ge_theta_2": (), "ge_theta_4": (), "ge_theta_8": (), "ge_plus_2": ("reduction", "bias"),
    "ge_plus_4": ("reduction", "bias"), "ge_plus_8": ("reduction", "bias"),
    "gc": ("reduction", "start"), "cbam": ("reduction", "bias"), "lcbam": ("reduction", "bias"),
    "coord": ("reduction", "bias"), "scoord": ("reduction", "bias"), "ela": (), "strip": (), "srm": (), "gct": (),
    "simam": (),
}  # fmt: skip
"""The names of units that an SESpec accepts, each with the details that can change it. Specs are read without PyTorch,
so the fields of the built-in units are repeated here; `se_lab.units.table.UNITS` writes those of a user's own units."""

Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class SESpec:
    """Which attention unit, and where: the axes of the SE paper's ablations (section 6), and the kind of unit.

    Examples:
        >>> SESpec(insertion="pre", reduction=8, stages=[4, 5]).stages
        (4, 5)
    """

    insertion: Annotated[str, INSERTIONS] = "standard"
    """Where in a block: standard, pre, post, identity (Table 14), conv3x3 (Table 15), or none: the plain backbone."""
    unit: str = "se"
    """The kind of unit: se, or another name in se_lab.UNITS. Fields that cannot change it keep their defaults."""
    reduction: Count = 16
    """The reduction ratio r (Table 10): the hidden width is C // r, at least 1."""
    squeeze: str = "avg"
    """The squeeze operator (Tables 11 and 16): avg, max, none, or a name a plugin adds."""
    excitation: str = "sigmoid"
    """The final non-linearity of the gate (Table 12): sigmoid, tanh, relu, or a name a plugin adds."""
    stages: Literal["all"] | tuple[int, ...] = "all"
    """The stages that get units (Table 13): all, or a list such as [2, 3]. Stage 1 is the stem, ResNet has 2 to 5."""
    bias: bool = False
    """Biases in the two FC layers: the paper's ablations have none, the authors' released nets do."""
    units: Annotated[str, ("all", "stride_1")] = "all"
    """Which units of a stage: all, or stride_1, those that keep the resolution (ShuffleNet's printed 2.4M, Table 3)."""
    start: Annotated[str, ("random", "identity")] = "random"
    """How a unit starts: random (He et al. 2015), or identity: its gate at 0.99 (relu: 1) for every input, so that a
    pretrained net starts as it was. identity needs biases."""

    def __post_init__(self) -> None:
        """Refuse invalid or conflicting values."""
        check_fields(self, "model.se")
        check_choice("model.se.unit", self.unit, UNIT_FIELDS)
        check_choice("model.se.squeeze", self.squeeze, OPERATORS["squeeze"])
        check_choice("model.se.excitation", self.excitation, OPERATORS["excitation"])
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
        details = [name for name in SE_DETAILS if name in UNIT_FIELDS[self.unit]]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in moot_fields(self.insertion, self.unit):
            if (value := getattr(self, name)) != defaults[name]:
                raise SpecError(
                    f"model.se.{name} is {value!r}, which changes nothing about model.se.unit={self.unit}; leave it at "
                    f"{defaults[name]!r} ({self.unit} takes {', '.join(details) or 'no details'})"
                )


def moot_fields(insertion: str, unit: str) -> list[str]:
    """Return the SESpec fields that cannot change a net: with insertion none all others, else what the unit lacks."""
    if insertion == "none":
        return [f.name for f in dataclasses.fields(SESpec) if f.name != "insertion"]
    details = UNIT_FIELDS.get(unit, SE_DETAILS) if isinstance(unit, str) else SE_DETAILS  # a wrong unit is named later
    return [name for name in SE_DETAILS if name not in details]


@dataclass(frozen=True)
class ModelSpec:
    """A timm backbone and the SE units put into it.

    Examples:
        >>> ModelSpec("resnet50", SESpec(reduction=8)).existing_se
        'refuse'
    """

    backbone: str = "resnet50"
    """The name of a net of timm's, of torchvision's (torchvision:resnet50) or of SE-Lab's own (cifar_resnet20 …)."""
    se: SESpec = field(default_factory=SESpec)
    """The SE units."""
    existing_se: Annotated[str, ("refuse", "keep", "replace")] = "refuse"
    """If the backbone has SE units already: refuse (an error), keep (add to them), replace (by units of this spec)."""
    pretrained: bool | str = False
    """True: the library's pretrained weights; a path: a file of weights of the plain backbone."""
    init: Annotated[str, ("he", "zero_init_last", "timm")] = "he"
    """Start of the weights: he (He et al. 2015), zero_init_last (He, and each branch's last norm at 0), or timm."""
    init_seed: Annotated[int | None, Meta(ge=0)] = None
    """Seeds the initial weights alone; by default the trial's seed does."""
    rounding: Annotated[int, Meta(ge=0)] = 0
    """0, or the number of a change of the initial weights by 1e-7 of their size, as large as rounding errors."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's constructor, such as {drop_path_rate: 0.1}."""
    fused: Annotated[str, ("auto", "on", "off")] = "auto"
    """Compute SE units in few passes over memory: on, off, or auto: where that is proven faster on the device, steps
    are large enough, and the trial is long enough to repay compiling. Parameters stay the same, and so do results but
    for rounding."""

    def __post_init__(self) -> None:
        """Refuse unknown choices; whether the backbone exists is asked of timm when it is built."""
        check_fields(self, "model")


@dataclass(frozen=True)
class DataSpec:
    """The images, how they are split, and how they reach the net.

    Examples:
        >>> DataSpec("folder:photos", image_size=64, batch_size=32).val_fraction
        0.1
    """

    name: str = "digits"
    """digits (scikit-learn's 1,797 handwritten digits), imagenet, places365; one of torchvision's sets: cifar10,
    cifar100, mnist, fashion_mnist, svhn, stl10, food101, flowers102, oxford_pets, caltech101, eurosat; a name that a
    plugin adds to se_lab.DATASETS; folder:PATH (train/ and val/ or test/, each with a folder for each class),
    wds:TRAIN.tar,TEST.tar (webdataset shards, or TRAIN,VAL,TEST; with braces such as {000..127}, and s3:// and http://
    addresses), or hf:NAME (a Hugging Face data set: a folder on disk, or streamed)."""
    image_size: Annotated[int | None, Meta(ge=8, le=65535)] = None
    """Side of the square images in pixels; by default the data set's own: 8 for digits, 224 for folders."""
    batch_size: Count = 128
    """Images per training step."""
    augment: Annotated[str, ("standard", "none")] = "standard"
    """standard: the data set's usual training augmentation; none: the evaluation transform."""
    rand_augment: str = ""
    """RandAugment after crop and flip, in timm's words, such as rand-m9-mstd0.5-inc1."""
    random_erasing: Share = 0.0
    """Probability that a rectangle of a training image becomes noise (Zhong et al. 2020)."""
    cutout: Annotated[int, Meta(ge=0)] = 0
    """Side in pixels of the square that is zeroed in each training image (DeVries & Taylor 2017); 16 on CIFAR-10."""
    mixup: Amount = 0.0
    """Alpha of mixup (Zhang et al. 2018): training images and labels are mixed in pairs, a share a batch."""
    cutmix: Amount = 0.0
    """Alpha of cutmix (Yun et al. 2019); with mixup, each batch has one or the other."""
    repeats: Count = 1
    """Repeated augmentation (Hoffer et al. 2020): copies of an image in a row, each augmented anew; an epoch has as
    many images as without, from fewer originals."""
    crop_pct: Annotated[float, Meta(gt=0, le=1)] = 0.875
    """Evaluation of files: the centre crop's share of the short side, 224/256 in the paper (299/352 for
    Inception-ResNet-v2)."""
    val_fraction: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Share of the training images held out for validation, where the data set has no validation split of its own."""
    split_seed: int = 0
    """Seeds the split, apart from the trial's seed: all seeds of a study share one split."""
    order_seed: Annotated[int | None, Meta(ge=0)] = None
    """Seeds the order and the augmentation of the training images alone; by default the trial's seed does."""
    on_error: Annotated[str, ("stop", "skip")] = "stop"
    """An image that cannot be read, or has a label out of range: stop, or skip it, count it and record it."""

    def __post_init__(self) -> None:
        """Refuse invalid or conflicting values."""
        check_fields(self, "data")
        if not self.name.startswith(("folder:", "wds:", "hf:")):
            _check_data_name(self.name)
        if self.rand_augment and not self.rand_augment.startswith("rand-"):
            raise SpecError(f"data.rand_augment is {self.rand_augment!r}; timm's form is rand-m9-mstd0.5-inc1")
        augmentations = [n for n in ("rand_augment", "random_erasing", "cutout", "mixup", "cutmix") if getattr(self, n)]
        if self.augment == "none" and augmentations:
            raise SpecError(f"data.augment is 'none', and data.{augmentations[0]} is on; choose one")

    @property
    def is_in_folders(self) -> bool:
        """Whether the set lies in folders, an image a file."""
        return self.name in ("imagenet", "places365") or self.name.startswith("folder:")


def _check_data_name(name: str) -> None:
    """Raise SpecError for a name that no data set has, with the nearest, or the folder's own form."""
    allowed = (*BUILT_IN_SETS, *DATA_SETS["table"], "folder:PATH", "wds:TRAIN.tar,TEST.tar", "hf:NAME")
    if name not in allowed and name and ("/" in name or expand_path(name).is_dir()):
        raise SpecError(f"data.name is {name!r}; a folder of images is given as 'folder:{name}'")
    check_choice("data.name", name, allowed)


SCHEDULES = ("constant", "step", "multistep", "cosine", "onecycle", "plateau")


@dataclass(frozen=True)
class OptimSpec:
    """Optimizer and learning-rate schedule.

    Examples:
        >>> OptimSpec(lr=0.05, schedule="cosine").momentum
        0.9
    """

    name: str = "sgd"
    """sgd (with momentum, as the paper), nesterov, or any optimizer name of timm's, such as adamw."""
    lr: Annotated[float, Meta(gt=0)] = 0.1
    """Initial learning rate."""
    momentum: Share = 0.9
    """Momentum of sgd and its kin."""
    weight_decay: Amount = 1e-4
    """Weight decay of weights; biases and norm parameters have none."""
    schedule: Annotated[str, SCHEDULES] = "step"
    """constant, step (every decay_epochs), multistep (at milestones), cosine, onecycle (up to lr over warmup_epochs and
    down to 0, both linearly, a step at a time), or plateau (of the validation loss)."""
    decay_epochs: Count = 30
    """step: epochs between drops."""
    milestones: tuple[int, ...] = ()
    """multistep: the epochs that begin with a drop."""
    decay_rate: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """step, multistep, plateau: the factor of a drop."""
    patience: Annotated[int, Meta(ge=0)] = 10
    """plateau: epochs without a lower validation loss before a drop."""
    warmup_epochs: Annotated[int, Meta(ge=0)] = 0
    """Epochs of linear warm-up."""

    def __post_init__(self) -> None:
        """Refuse invalid or conflicting values."""
        check_fields(self, "optim")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise SpecError(
                f"optim.schedule is {self.schedule!r} and optim.milestones is {list(self.milestones)!r}; "
                "milestones belong to the multistep schedule, and it needs them"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise SpecError(f"optim.milestones is {list(self.milestones)!r}; it must be rising epochs from 1 on")


@dataclass(frozen=True)
class TrainSpec:
    """The training run.

    Examples:
        >>> TrainSpec(epochs=30, precision="bf16", devices=2).ranks
        2
    """

    epochs: Count = 10
    """Passes over the training images."""
    label_smoothing: Annotated[float, Meta(ge=0, le=0.999)] = 0.0
    """Probability mass the loss spreads over all classes (training only)."""
    precision: Annotated[str, ("fp32", "bf16", "fp16", "fp64")] = "fp32"
    """fp32, bf16 or fp16: the arithmetic of the net (autocast); weights stay fp32. fp64: everything in double."""
    channels_last: bool = False
    """Keep images and activations in channels-last memory order, which GPUs prefer in 16 bits."""
    clip_norm: Amount = 0.0
    """Clip the gradient's norm to this value; 0 disables clipping."""
    select: Annotated[str, ("last", "best")] = "last"
    """The weights that are tested: last, or best (lowest validation loss; needs a validation split)."""
    ema: Annotated[float, Meta(ge=0, le=0.9999999)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is validated and tested (0.9999 is
    usual); 0 disables it."""
    devices: Count = 1
    """Devices of a node that share every batch (DDP): GPUs, or processes on a CPU."""
    nodes: Count = 1
    """Nodes that share every batch."""
    accumulate: Count = 1
    """Micro-batches that a device takes its share of a batch in, one after the other."""
    sync_bn: bool = False
    """Batch norms see the images of all devices, not only their own."""
    compile: bool = False
    """Compile the net with torch.compile."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        check_fields(self, "train")

    @property
    def ranks(self) -> int:
        """Processes that share every batch."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class RunSpec:
    """All fields that can affect a trial's results; their hash is its name, `trial_id`.

    Examples:
        >>> spec = RunSpec(model=ModelSpec("resnet50", SESpec(reduction=8)), seed=1)
        >>> spec.flat()["model.se.reduction"]
        8
        >>> len(spec.trial_id)
        12
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    """The net."""
    data: DataSpec = field(default_factory=DataSpec)
    """The images."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    """The optimizer."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """The training run."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Seeds weights, data order, augmentation and dropout, each a stream of its own."""

    def __post_init__(self) -> None:
        """Refuse fields that do not go together, such as ones that would let a test image decide something."""
        check_fields(self)
        if self.optim.warmup_epochs >= self.train.epochs and self.optim.warmup_epochs:
            raise SpecError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs} and train.epochs is {self.train.epochs}; the "
                "warm-up must end before the training does"
            )
        if self.data.batch_size % (parts := self.train.ranks * self.train.accumulate):
            lower_size = self.data.batch_size - self.data.batch_size % parts
            raise SpecError(
                f"data.batch_size is {self.data.batch_size}, the images of a step in all, and train.devices, nodes and "
                f"accumulate deal it out in {parts} equal parts; the nearest that can be are "
                f"{' and '.join(str(size) for size in (lower_size, lower_size + parts) if size)}"
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
        changes = {key: value for key, value in dotted(self).items() if key not in moot and value != default[key]}
        return id_of(changes)


_DEFAULT = RunSpec()
