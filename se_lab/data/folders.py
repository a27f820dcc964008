"""Data sets in folders of image files: one folder per class, or torchvision's Places365."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torchvision.datasets import Places365
from torchvision.datasets.folder import IMG_EXTENSIONS

from se_lab.data.base import DataError
from se_lab.data.files import Files, printable
from se_lab.data.images import EncodedData
from se_lab.spec import DataSpec, expand_path
from se_lab.spec.text import counted

HIDDEN = {
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "@tmp", "__MACOSX", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", "Thumbs.db", "desktop.ini",
}  # fmt: skip
"""Names of hidden entries, besides those that start with a dot."""


@dataclass(frozen=True)
class Scan:
    """The images of a folder with one sub-folder per class, sorted by name."""

    classes: list[str]
    paths: list[str]
    """The paths of the images, relative to the folder."""
    labels: list[int]
    left_out: Counter[str] = field(default_factory=Counter)
    """The number of entries of each kind that are not images, such as {"hidden": 2, ".gif": 3}."""


def scan(folder: str | Path) -> Scan:
    """List the images of a folder with one sub-folder per class, without opening them.

    Hidden entries (.ipynb_checkpoints, @eaDir, __MACOSX, ._x.png, Thumbs.db) and files without an image suffix
    are left out and counted.

    Raises:
        OSError: if the folder cannot be listed.
    """
    result = Scan([], [], [])
    for entry in _entries(str(folder), result.left_out):
        if not entry.is_dir():
            is_image = entry.name.lower().endswith(IMG_EXTENSIONS)
            result.left_out["image beside the class folders" if is_image else _kind(entry.name)] += 1
            continue
        count = len(result.paths)
        _walk(entry.path, f"{entry.name}/", result)
        result.labels.extend([len(result.classes)] * (len(result.paths) - count))
        result.classes.append(entry.name)
    return result


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the class folders in a folder, in the order of `scan`.

    Raises:
        OSError: if the folder cannot be listed.
    """
    return [entry.name for entry in _entries(str(folder), Counter()) if entry.is_dir()]


def _walk(folder: str, prefix: str, result: Scan) -> None:
    for entry in _entries(folder, result.left_out):
        if entry.is_dir(follow_symlinks=False):
            _walk(entry.path, f"{prefix}{entry.name}/", result)
        elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
            result.left_out["special file"] += 1  # reading a pipe would wait for ever
        elif entry.name.lower().endswith(IMG_EXTENSIONS):
            result.paths.append(prefix + entry.name)
        else:
            result.left_out[_kind(entry.name)] += 1


def _entries(folder: str, left_out: Counter[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        all_entries = list(entries)
    visible_entries = [entry for entry in all_entries if entry.name[0] != "." and entry.name not in HIDDEN]
    if len(visible_entries) < len(all_entries):
        left_out["hidden"] += len(all_entries) - len(visible_entries)
    return sorted(visible_entries, key=_name)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _kind(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without a suffix"  # noqa: PTH122  # a Path per file is slower


class FolderData(EncodedData):
    """A data set in folders: train/, and val/ or test/ or both, each with one folder per class.

    If there are both, val/ is the validation split; if there is one, it is the test split, as ImageNet's val/ in the
    paper, and `val_fraction` of the training images are held out for validation.
    """

    def __init__(
        self, spec: DataSpec, seed: int, root: str | Path, workers: int, listing: Listing | None = None
    ) -> None:
        super().__init__(spec, seed, workers)
        name, given_listing = _in_use.get() or (None, None)
        if listing is None and name == (spec.name, str(root)):
            listing = given_listing
        self.listing = listing = listing or list_files(spec, root)
        self.root, self.classes = listing.root, [printable(name) for name in listing.classes]
        self.left_out, self._digest = listing.left_out, listing.digest
        self.set_splits(listing.train, listing.val, listing.test, {})

    def unreadable(self, every: bool = False) -> dict[str, str]:
        """Return the images that cannot be decoded, {name: reason}; {} for a checked listing."""
        return {} if self.listing.checked and not every else super().unreadable(every)

    def class_names(self) -> list[str]:
        """Return the names of the classes; for WordNet ids, the words from meta.bin or timm."""
        if not all(name[:1] == "n" and name[1:].isdigit() and len(name) == 9 for name in self.classes):
            return self.classes
        if (meta := self.root / "meta.bin").exists():
            words: dict[str, Sequence[str]] = torch.load(meta, weights_only=True)[0]
        else:
            from timm.data import ImageNetInfo

            info = ImageNetInfo("imagenet22k")
            words = {id: (info.label_name_to_description(id),) for id in info.label_names()}  # type: ignore[no-untyped-call]
        return [", ".join(words.get(name, [name])) for name in self.classes]


@dataclass(frozen=True)
class Listing:
    """The files of a data set in folders."""

    root: Path
    classes: list[str]
    train: Files
    val: Files | None
    """The validation images, or None if they are to be held out of the training images."""
    test: Files
    left_out: Counter[str]
    digest: str | None = None
    """The digest of the images, or None if it is unknown."""
    checked: bool = False
    """Whether every image is known to be readable."""


_in_use: ContextVar[tuple[tuple[str, str], Listing] | None] = ContextVar("_in_use", default=None)
"""The name and the root of a data set, and its listing."""


@contextlib.contextmanager
def use_listing(listing: Listing | None, spec: DataSpec, *, root: str | Path = ".") -> Iterator[None]:
    """Open the data set of a spec from a listing inside the context, in this thread; the folders are not listed again.

    Without a listing, the folders are listed as usual.
    """
    token = _in_use.set(None if listing is None else ((spec.name, str(root)), listing))
    try:
        yield
    finally:
        _in_use.reset(token)


_MISSING = "is missing; a data set has train/ and val/ or test/, each with one folder per class"


def list_files(spec: DataSpec, root: str | Path) -> Listing:
    """Return the files of a data set in folders, without reading images.

    Raises:
        DataError: if a folder is missing or does not contain a data set.
    """
    folder = expand_path(spec.name.removeprefix("folder:"), root)  # imagenet and places365: root/<name>
    if not folder.is_dir():
        raise DataError(f"{folder / 'train'} {_MISSING}; data.name is {spec.name!r}, data_root {str(root)!r}")
    has_lists = spec.name == "places365" and (folder / "places365_train_standard.txt").exists()
    return _places365(folder) if has_lists else _folders(folder)


def _folders(root: Path) -> Listing:
    left_out: Counter[str] = Counter()
    eval_splits = [name for name in ("val", "test") if (root / name).is_dir()]
    if (root / "train").is_dir() and not eval_splits:
        raise DataError(f"{root} has train/ but neither val/ nor test/; one of them must contain the test images")
    scans = {split: _scan_split(root, split) for split in ("train", *eval_splits)}
    classes = scans["train"].classes
    files = []
    for name, part in scans.items():
        if part.classes != classes:
            diff = sorted(set(part.classes) ^ set(classes))
            raise DataError(
                f"{root / name} and {root / 'train'} have different classes: {', '.join(map(printable, diff[:5]))}"
            )
        files.append(Files(str(root), [f"{name}/{path}" for path in part.paths], part.labels))
        left_out += part.left_out
    return Listing(root, classes, files[0], files[1] if len(files) == 3 else None, files[-1], left_out)


def _places365(root: Path) -> Listing:
    """Return the files of Places365 in torchvision's layout, of the small or the large images."""
    is_small = (root / "data_256_standard").is_dir()
    try:
        train, test = (Places365(root, split, small=is_small) for split in ("train-standard", "val"))
    except RuntimeError as error:
        raise DataError(f"{root} looks like torchvision's Places365 layout but is incomplete: {error}") from error
    splits = []
    for part in (train, test):
        if not Path(part.images_dir).is_dir():
            raise DataError(
                f"{part.images_dir} is missing; Places365 has data_256_standard/ and val_256/, or "
                "data_large_standard/ and val_large/"
            )
        splits.append(Files(str(root), [os.path.relpath(path, root) for path, _ in part.imgs], part.targets))
    names = sorted(train.class_to_idx, key=train.class_to_idx.__getitem__)
    return Listing(root, names, splits[0], None, splits[1], Counter())


def _scan_split(root: Path, split: str) -> Scan:
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"{folder} {_MISSING}")
    result = scan(folder)
    if len(result.classes) < 2:
        strays, names = result.left_out["image beside the class folders"], ", ".join(map(printable, result.classes))
        raise DataError(
            f"{folder} has {counted(len(result.classes), 'class folder')}{names and f' ({names})'}; training needs at "
            "least two" + (f"; move {counted(strays, 'image')} beside the class folders into them" if strays else "")
        )
    if empty_classes := sorted(set(range(len(result.classes))) - set(result.labels)):
        raise DataError(
            f"{folder / printable(result.classes[empty_classes[0]])} has no images; the suffix of an image must be one "
            f"of {', '.join(IMG_EXTENSIONS)}"
        )
    return result
