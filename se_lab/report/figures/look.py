"""Style, width, title and fonts of figures, and reproducible image files."""

from __future__ import annotations

import functools
import html
import io
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from se_lab.report.columns import ReportError, unknown_name
from se_lab.store import write_bytes_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("se_lab.mplstyle")
SMALLEST = 6.0
"""Minimum font size in points."""


class Style(NamedTuple):
    """Width in inches, font size in points, and resolution."""

    width: float
    font: float
    dpi: int


STYLES = {"page": Style(6.4, 9.0, 150), "paper": Style(3.3, 7.5, 300), "talk": Style(10.0, 15.0, 150)}


@dataclass(frozen=True)
class Look:
    """Style, width and title of a figure.

    Raises ReportError for an unknown style or a width out of range.
    """

    style: str = "page"
    """page, paper (one column of a journal) or talk (large fonts)."""
    width: float | None = None
    """Width in inches; by default that of the style."""
    title: str | None = None
    """A title to use instead of the default; an empty string for no title."""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise unknown_name("style", self.style, STYLES)
        if self.width is not None and not 2.0 <= self.width <= 60.0:
            raise ReportError(f"The width is {self.width:g} inches; it must be from 2 to 60.")

    @property
    def inches(self) -> float:
        """Width in inches."""
        return self.width or STYLES[self.style].width

    @property
    def font(self) -> float:
        """Font size in points."""
        return STYLES[self.style].font

    @property
    def small(self) -> float:
        """Font size of ticks, names and notes in points."""
        return max(SMALLEST, self.font - 1)

    @property
    def scale(self) -> float:
        """Size of markers, lines and gaps relative to the page style."""
        return self.font / STYLES["page"].font

    def settings(self, families: Sequence[str]) -> dict[str, Any]:
        """Return Matplotlib settings in addition to the style file."""
        sizes = {"font.size": self.font, "axes.titlesize": self.font, "axes.labelsize": self.font}
        sizes |= dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), self.small)
        lines = {"axes.linewidth": 0.8, "grid.linewidth": 0.6, "errorbar.capsize": 2.5, "lines.linewidth": 1.5}
        dpi = STYLES[self.style].dpi
        return (
            sizes
            | {key: value * self.scale for key, value in lines.items()}
            | {"figure.dpi": dpi, "font.family": ["sans-serif", *families]}
        )


@contextmanager
def settings_of_style(extra: dict[str, Any] | None = None) -> Iterator[None]:
    """Return a context with the package's Matplotlib style."""
    import matplotlib

    settings: Any = extra or {}
    with matplotlib.rc_context(fname=STYLE), matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def fallback_fonts(texts: Iterable[str]) -> tuple[list[str], str]:
    """Return fonts with characters that the default font lacks, and characters in no font."""
    symbols = {character for character in set().union(*texts) if ord(character) > 126 and not _is_mark(character)}
    if not (missing := symbols - _usual_characters()):
        return [], ""
    families: list[str] = []
    for family, characters in _installed_fonts():
        if missing & characters:
            families.append(family)
            missing = missing - characters
        if not missing:
            break
    return families, "".join(sorted(missing))


def printable(text: str) -> str:
    """Replace line breaks and control characters in a text by spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Save a figure as `stem.png`, `stem.svg` and so on (also pdf), and return the paths.

    Files are reproducible: they have no dates, and fixed ids in SVG. Text in SVG is not converted to paths. The label
    of the figure, with title and description, is stored as metadata. Missing folders are created.
    """
    title, _, description = str(figure.get_label()).partition("\n")
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": title, "Description": description},
        "svg": {"Title": title, "Description": description, "Date": None},
        "pdf": {"Title": title, "Subject": description, "CreationDate": None},
    }
    stem = Path(stem)
    paths = [stem.parent / f"{stem.name}.{format}" for format in formats]
    with settings_of_style():
        for path, format in zip(paths, formats, strict=True):
            buffer = io.BytesIO()
            figure.savefig(
                buffer, format=format, metadata={key: value or None for key, value in metadata[format].items()}
            )
            content = buffer.getvalue()
            if format == "svg":
                content = _describe_svg(content.decode(), title, description).encode()
            write_bytes_whole(path, content)
    return paths


def _describe_svg(svg: str, title: str, description: str) -> str:
    """Add a description and the role img to an SVG, for screen readers."""
    head, mark, rest = svg.partition("</title>")
    head = head.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    return f"{head}{mark}\n <desc>{html.escape(description)}</desc>{rest}"


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn", "Zl", "Zp", "Zs")


@functools.cache
def _usual_characters() -> set[str]:
    from matplotlib.font_manager import FontProperties, findfont

    return _characters(findfont(FontProperties(family="DejaVu Sans")))


@functools.cache
def _installed_fonts() -> list[tuple[str, set[str]]]:
    """Return the other installed font families with their characters, the largest first."""
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if font.style == "normal" and font.weight == 400]
    # A last-resort font shows every character as a box.
    files = {font.name: font.fname for font in fonts if not font.name.startswith(("Last Resort", "DejaVu"))}
    families = []
    for family, file in files.items():
        try:
            families.append((family, _characters(file)))
        except (OSError, RuntimeError):  # the font was removed, or FreeType cannot read it
            continue
    return sorted(families, key=lambda item: (-len(item[1]), item[0]))


def _characters(file: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    return set(map(chr, FT2Font(file).get_charmap()))
