"""The command that runs a Python module in another process."""

from __future__ import annotations

import sys


def module_command(name: str, *arguments: str) -> list[str]:
    """Return the command of `python -m NAME`, but without the current folder first among the places of modules.

    There a user's own `datasets/` or `yaml.py` would be taken for the package of that name.
    """
    start = (
        "import runpy, sys; sys.path[:1] == [''] and sys.path.pop(0); "
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", start, *arguments]
