"""The command that runs a Python module in another process."""

from __future__ import annotations

import sys


def module_command(name: str, *arguments: str) -> list[str]:
    """Return the command `python -m NAME`, without the current folder at the start of sys.path.

    A user's `datasets/` or `yaml.py` in the current folder would shadow the package of that name.
    """
    start = (
        "import runpy, sys; sys.path[:1] == [''] and sys.path.pop(0); "
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", start, *arguments]
