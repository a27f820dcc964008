"""Provenance of a trial: everything outside its spec that can affect its results.

A record keeps the `current_provenance` of the process that ran its trial. `train`, `sweep` and `status` compare it with
the present one by `differences`; tables compare several trials by `mixtures`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from se_lab.spec import ExecSpec, RunSpec, expand_path
from se_lab.spec.text import counted
from se_lab.store.files import digest_of_file

PACKAGES = ("se-lab", "torch", "torchvision", "lightning", "timm", "fvcore", "numpy")
OPTIONAL = ("plugin ", "callbacks", "weights")
"""Prefixes of keys that trials without plugins, user callbacks or a file of weights do not have; other keys are always
known."""
THEN = " then "
"""Separates the successive values of a resumed trial."""


def current_provenance(
    spec: RunSpec, execution: ExecSpec, *, images: str | None = None, device: str | None = None
) -> dict[str, str]:
    """Return the provenance that a trial would have now, as {key: digest, version or name}.

    Keys: plugin NAME (SHA-256 of its source files), callbacks (the user's), weights (SHA-256 of the file in
    model.pretrained), images (the data digest), git, device, threads, Python, and the versions of `PACKAGES`. Unknown
    values are left out, and compare as equal.

    Args:
        spec: The trial.
        execution: Where and how the trial runs.
        images: The digest of the images; None if they have not been opened.
        device: The model of the device; None if unknown. A CPU is looked up.
    """
    plugins = [name for name in map(str.strip, execution.plugins.split(",")) if name]
    callbacks = [callback for callback in execution.callbacks if _is_own(_class_path(callback), plugins)]
    plugins += [path.rpartition(".")[0] for path in map(_class_path, callbacks) if "." in path]
    state = {f"plugin {name}": source_digest(name) for name in dict.fromkeys(plugins)}
    if callbacks:
        state["callbacks"] = json.dumps(callbacks)
    pretrained = spec.model.pretrained
    if isinstance(pretrained, str) and (file := expand_path(pretrained)).is_file():
        status = file.stat()
        state["weights"] = _file_digest(str(file), status.st_size, status.st_mtime_ns, status.st_ino)
    if device is None and execution.device == "cpu":
        device = cpu_model()
    if device is not None:
        state["device"] = device if spec.train.ranks == 1 else f"{spec.train.ranks} × {device}"
    if images is not None:
        state["images"] = images
    if (git := git_state(str(Path.cwd()))) is not None:
        state["git"] = git
    return state | {"threads": str(execution.threads)} | versions()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the differences between two provenances, such as 'torch was 2.13.0 and is 2.14.1'.

    Keys that only one of them has are skipped, unless they are `OPTIONAL`.
    """
    if not before or not now:
        return []
    keys = [key for key in {**before, **now} if key.startswith(OPTIONAL) or (key in before and key in now)]
    return [
        f"{key} was {_short(before.get(key, 'absent'))} and is {_short(now.get(key, 'absent'))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def mixtures(trials: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ among trials, as 'torch: 2.13.0 (3 trials), …'."""
    provenances = [trial for trial in trials if trial]
    lines = []
    for key in dict.fromkeys(key for trial in provenances for key in trial):
        values = Counter(
            _short(trial.get(key, "absent")) for trial in provenances if key in trial or key.startswith(OPTIONAL)
        )
        if len(values) > 1 or any(THEN in value for value in values):
            counts = (f"{value} ({counted(count, 'trial')})" for value, count in values.most_common())
            lines.append(f"{key}: {', '.join(counts)}")
    return lines


def merge_parts(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Merge the provenances of a resumed trial's parts; a value that changed becomes 'A then B'."""
    values: dict[str, list[str]] = {}
    for part in parts:
        for key, value in part.items():
            values.setdefault(key, []).append(value)
    return {key: THEN.join(dict.fromkeys(sequence)) for key, sequence in values.items()}


def source_digest(module: str) -> str:
    """Return the SHA-256 of a module's source files and the files that they import beside them.

    Nothing is imported. For a module without source files, return 'no source'.
    """
    digest, files = hashlib.sha256(), sorted(_source_files(module))
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest() if files else "no source"


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages in `PACKAGES`."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def cpu_model() -> str:
    """Return the model of this machine's CPU, such as 'AMD EPYC 7763 64-Core Processor'."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def git_state(folder: str) -> str | None:
    """Return 'COMMIT' or 'COMMIT with changes' for a folder's repository; None without one.

    No command from the repository's configuration is run: no file-system monitor, hook, filter, remote or submodule.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        entries = _git(folder, "config", "--list", "--show-scope", "--name-only", "--null").split("\0")
        settings = zip(entries[::2], entries[1::2], strict=False)
        own = [name for scope, name in settings if scope in ("local", "worktree") and name.startswith("filter.")]
        unset = [f"--config-env={name}=SE_LAB_NOTHING" for name in dict.fromkeys(own)]  # -c ends a name at its first =
        changes = _git(folder, *unset, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} with changes" if changes else commit


def _git(folder: str, *arguments: str) -> str:
    """Return the output of a git command; it may contain file names that are not UTF-8."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-optional-locks", *arguments]
    environment = os.environ | {"SE_LAB_NOTHING": "", "GIT_ALLOW_PROTOCOL": "none"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True, timeout=10)
    return os.fsdecode(result.stdout).strip()


def _class_path(piece: str | Mapping[str, object]) -> str:
    return piece if isinstance(piece, str) else str(piece.get("class_path"))


def _is_own(path: str, plugins: Collection[str]) -> bool:
    """Return whether a callback may be the user's: it could affect results."""
    return not path.startswith("lightning.") and ("." in path or bool(plugins))


def _short(value: str) -> str:
    """Return a value with digests and commits shortened to 12 digits."""
    return " ".join(word[:12] if len(word) >= 40 and word.isalnum() else word for word in value.split(" "))


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, *_stamp: int) -> str:
    """Return the SHA-256 of a file, cached while its size, time and inode stay the same."""
    return digest_of_file(Path(path))


def _source_files(module: str) -> set[Path]:
    """Return a module's source files, and those that they import from the module's folder."""
    files: set[Path] = set()
    roots = {"se_lab"}  # identified by version and git
    queue, home = [module], None
    while queue:
        root = queue.pop().partition(".")[0]
        entry = None if root in roots else _entry_of(root)
        roots.add(root)
        if entry is None:
            continue
        folder = entry.parents[entry.name == "__init__.py"]
        home = home or folder
        if folder != home:
            continue  # an installed package, identified by its version
        sources = sorted(entry.parent.rglob("*.py")) if entry.name == "__init__.py" else [entry]
        files.update(sources)
        if not {"site-packages", "dist-packages"} & set(home.parts):  # there every installed package is a neighbour
            queue += [name for file in sources for name in _imports_of(file)]
    return files


def _entry_of(root: str) -> Path | None:
    """Return the source file of a top-level module (a package's __init__.py), or None."""
    try:  # the current folder is added to sys.path only when plugins are imported
        spec = importlib.util.find_spec(root) or importlib.machinery.PathFinder.find_spec(root, [str(Path.cwd())])
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    origin = Path(spec.origin).absolute()
    return origin if origin.is_file() else None


def _imports_of(file: Path) -> Iterator[str]:
    """Yield the names of the modules that a file imports, at any level of its code."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
