"""A page of one file: a template, its style and scripts, data as JSON, and Plotly, compressed."""

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
    """Return the text of a page that needs no network.

    Args:
        template: The page with a mark for each part, in this order: HEAD, CSS, STATIC, DATA, ARRAYS, PLOTLY, SCRIPTS.
        data: The data that the scripts show, as text, so that nothing in it can act as markup.
        scripts: Files beside `common.js`, which comes first.
        style: Files beside `page.css`, which comes first.
        static: Markup for readers without JavaScript, in which the caller has escaped all data.
        arrays: Elements with numbers that the scripts decode when they need them.
    """
    parts = {
        "<!--HEAD-->": _read(ASSETS / "head.html").rstrip(),
        "/*CSS*/": "\n".join(_read(path) for path in (ASSETS / "page.css", *style)),
        "<!--STATIC-->": static,
        "/*DATA*/": script_safe(data),
        "<!--ARRAYS-->": arrays,
        "/*PLOTLY*/": _plotly(),
        "/*SCRIPTS*/": "\n".join(_read(path) for path in (ASSETS / "common.js", *scripts)),
    }
    page, pieces = _read(template), []
    for mark, text in parts.items():  # search behind the inserted text, as data may contain a mark
        head, _, page = page.partition(mark)
        pieces += [head, text]
    return "".join([*pieces, page])


def script_safe(data: Any) -> str:
    """Write JSON in which no `<` can end the script that it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
