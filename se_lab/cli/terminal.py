"""Output to terminals that lack characters, and to pipes whose reader has exited."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import unicodedata
from typing import TextIO

_PLAIN = {
    "×": "x", "·": "*", "±": "+-", "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "→": "->", "≈": "~",
    "─": "-", "━": "-", "│": "|", "┃": "|", "╇": "+", "╪": "+", "═": "=", "║": "|", "’": "'", "“": '"', "”": '"',
    "Δ": "d", "σ": "s", "µ": "u", "✓": "x",
}  # fmt: skip


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Return a replacement for characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2500" <= character <= "\u257f":
        return "+"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def write_plainly() -> None:
    """Replace characters in this process's output that the terminal's encoding lacks."""
    codecs.register_error("se-lab-plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # the stream of a test or notebook
            stream.reconfigure(errors="se-lab-plain")  # type: ignore[union-attr]


def reader_is_gone() -> bool:
    """Return whether the reader of this process's output, such as `head -1`, has ended."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def give_up(stream: TextIO) -> None:
    """Discard all further output to a stream whose reader has ended or whose disk is full."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as sink:  # noqa: PTH123
        os.dup2(sink.fileno(), stream.fileno())
