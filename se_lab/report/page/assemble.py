"""Assemble a page in one file from a template, style, scripts, data as JSON, and Plotly."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).with_name("assets")


def assemble(
    template: Path,
    data: Mapping[str, Any],
    scripts: Sequence[Path],
    *,
    style: Sequence[Path] = (),
    static: str = "",
    arrays: str = "",
) -> str:
    """Return the HTML of a page that works without a network.

    Args:
        template: The page between `head.html` and `tail.html`: its title and body, with placeholders CSS and STATIC.
        data: Data for the scripts, which insert it as text, never as markup.
        scripts: Files in addition to `common.js`, which is first.
        style: Files in addition to `page.css`, which is first.
        static: Markup for readers without JavaScript; the caller escapes all data in it.
        arrays: Elements with numbers that the scripts decode on demand.
    """
    parts = {  # in the order of the page
        "/*CSS*/": "\n".join(_read(path) for path in (ASSETS / "page.css", *style)),
        "<!--STATIC-->": static,
        "/*DATA*/": script_safe(data),
        "<!--ARRAYS-->": arrays,
        "/*PLOTLY*/": _plotly(),
        "/*SCRIPTS*/": "\n".join(_read(path) for path in (ASSETS / "common.js", *scripts)),
    }
    page, pieces = "".join(_read(path) for path in (ASSETS / "head.html", template, ASSETS / "tail.html")), []
    for mark, text in parts.items():  # search after the inserted text, as data may contain a placeholder
        head, _, page = page.partition(mark)
        pieces += [head, text]
    return "".join([*pieces, page])


def script_safe(data: Any) -> str:
    """Return JSON without `<`, which could end a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
