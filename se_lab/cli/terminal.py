"""Output that a terminal cannot accept: characters its encoding lacks, any text once its reader has gone."""

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
    """Return a replacement for characters that an encoding lacks: + for box drawing, ? for unknown ones."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2500" <= character <= "\u257f":
        return "+"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def write_plainly() -> None:
    """Let this process's output hold any text, in ASCII where the terminal's encoding lacks a character."""
    codecs.register_error("se-lab-plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream of a test or a notebook
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
    """Discard all further output to a stream, whose reader has gone or whose disk is full."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as sink:  # noqa: PTH123
        os.dup2(sink.fileno(), stream.fileno())
