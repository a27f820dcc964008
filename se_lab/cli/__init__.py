"""The command se-lab: each verb parses its flags, calls one function of the package, and prints.

A verb is a function in a module beside this one, imported when it is called: `se-lab --help` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import sys
import warnings
from collections.abc import Sequence

from se_lab.spec import SpecError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "train": ("train", "run one trial, or go on with it"),
    "sweep": ("sweep", "run every trial of a W&B sweep spec, here, on Slurm or through W&B"),
    "check": ("sweep", "what W&B would refuse in a sweep spec, or do other than it is written"),
    "status": ("sweep", "the state of each trial of a sweep"),
    "table": ("table", "the ablation table of trials that have run"),
    "plot": ("plot", "figures of trials that have run"),
    "report": ("report", "one page of a study: table, figures, every trial"),
    "profile": ("costs", "what nets cost: parameters, MACs, element operations"),
    "models": ("costs", "the backbones that can take SE units"),
    "excitations": ("excitations", "what the SE units of trained nets do"),
    "eval": ("export", "the test error of a trained net, on its own images or others"),
    "export": ("export", "a trained net for timm, TorchScript, ONNX, detectors"),
    "gc": ("store", "list or delete files of a store that are no longer needed"),
    "verify": ("store", "check that the files of a store are complete and undamaged"),
    "init": ("init", "copy the shipped sweep specs, recipes and scripts into a folder"),
    "sync": ("sweep", "send trials that ran offline to W&B"),
}
"""Each verb's module and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 1 something failed, 2 wrong input, 75 stopped and resumable."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from se_lab import __version__

        print(f"se-lab {__version__}")
        return 0
    for module in ("torch.jit", "lightning.pytorch.utilities._pytree"):  # timm's import, Lightning's loaders
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    verb, *rest = argv
    if verb not in VERBS:
        print(f"se-lab: no verb is called {verb!r}{nearest(verb, VERBS)}; se-lab --help lists them", file=sys.stderr)
        return 2
    try:
        status: int = getattr(importlib.import_module(f"se_lab.cli.{VERBS[verb][0]}"), verb)(rest)
        return status
    except (ValueError, OSError) as error:
        if not _is_told_plainly(error):
            raise
        print(f"se-lab {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"se-lab {verb}: stopped", file=sys.stderr)
        return 75 if verb in ("train", "sweep") else 130


def _is_told_plainly(error: Exception) -> bool:
    """Tell whether an error's message is all a user needs; whoever raised a DataError has loaded se_lab.data."""
    data = sys.modules.get("se_lab.data")
    wrong_paths = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS):
        return True
    return isinstance(error, (SpecError, *wrong_paths)) or (data is not None and isinstance(error, data.DataError))


def _overview() -> str:
    lines = ["usage: se-lab VERB ...", "", "Squeeze-and-Excitation ablations on timm backbones.", ""]
    lines += [f"  {name:<12} {about}" for name, (_, about) in VERBS.items()]
    return "\n".join([*lines, "", "se-lab VERB --help tells a verb's flags."])
