"""The se-lab command: each verb parses flags, calls a function and prints the result.

A verb is a function in a module of this package, imported on demand, so that `se-lab --help` is fast.
"""

from __future__ import annotations

import errno
import importlib
import sys
import warnings
from collections.abc import Sequence

from se_lab.cli.terminal import give_up, reader_is_gone, write_plainly
from se_lab.spec import SpecError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "train": ("train", "run one trial, or resume it"),
    "sweep": ("sweep", "run the trials of a W&B sweep spec locally, on Slurm or through W&B"),
    "check": ("specs", "list the parts of a sweep spec that W&B would refuse or run differently"),
    "status": ("specs", "print the state of each trial of a sweep"),
    "table": ("table", "print the ablation table of trials"),
    "plot": ("plot", "draw the figures of a study"),
    "report": ("report", "write a page of a study with table, figures and all trials"),
    "profile": ("costs", "count the parameters, MACs and elementwise operations of nets"),
    "models": ("costs", "list the backbones that support SE units"),
    "excitations": ("excitations", "inspect the SE units of trained nets"),
    "eval": ("export", "measure the test error of a trained net"),
    "export": ("export", "export a trained net to timm, TorchScript, ONNX or detectors"),
    "gc": ("store", "list or delete files of a store that are no longer needed"),
    "verify": ("store", "check that the files of a store are complete and not corrupt"),
    "init": ("init", "copy the shipped sweep specs, recipes and scripts into a folder"),
    "sync": ("specs", "send trials that ran offline to W&B"),
}
"""The module and the summary of each verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb, and return the exit status.

    It is 0 for success, 1 for failure, 2 for invalid input, 75 if stopped and resumable, 141 for a broken pipe.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    write_plainly()
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # for example `se-lab models | head -1`
        if not reader_is_gone():
            raise
        give_up(sys.stdout)
        return 141  # as for a process ended by SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        give_up(sys.stdout)
        print(f"se-lab: {error.strerror}: the output is incomplete", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"se-lab {version('se-lab')}")
        return 0
    for module in ("torch.jit", "lightning.pytorch.utilities._pytree"):  # timm's import, Lightning's loaders
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    verb, *rest = argv
    if verb not in VERBS:
        print(f"se-lab: unknown command {verb!r}{nearest(verb, VERBS)}; se-lab --help lists them", file=sys.stderr)
        return 2
    try:
        status: int = getattr(importlib.import_module(f"se_lab.cli.{VERBS[verb][0]}"), verb)(rest)
        return status
    except (ValueError, OSError) as error:
        if not _is_the_users(error):
            raise
        print(f"se-lab {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"se-lab {verb}: stopped", file=sys.stderr)
        return 75 if verb in ("train", "sweep") else 130


def _is_the_users(error: Exception) -> bool:
    """Return whether an error is due to the input, so that it needs no traceback."""
    data = sys.modules.get("se_lab.data")  # imported already if a DataError was raised
    wrong_paths = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS):
        return True
    return isinstance(error, (SpecError, *wrong_paths)) or (data is not None and isinstance(error, data.DataError))


def _overview() -> str:
    lines = ["usage: se-lab VERB ...", "", "Squeeze-and-Excitation ablations on timm backbones.", ""]
    lines += [f"  {name:<12} {summary}" for name, (_, summary) in VERBS.items()]
    return "\n".join([*lines, "", "se-lab VERB --help lists the flags of a verb."])
