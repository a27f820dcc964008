"""How figures look: style, width and title, fonts that have the glyphs, and files reproducible to the byte."""

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

from se_lab.report.columns import ReportError, unknown
from se_lab.store import write_bytes_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("se_lab.mplstyle")
SMALLEST = 6.0
"""Points of the smallest text of any figure."""


class Style(NamedTuple):
    """Width in inches, font size in points and resolution of a use."""

    width: float
    font: float
    dpi: int


STYLES = {"page": Style(6.4, 9.0, 150), "paper": Style(3.3, 7.5, 300), "talk": Style(10.0, 15.0, 150)}


@dataclass(frozen=True)
class Look:
    """How a figure is drawn.

    Raises ReportError for an unknown style and for a width that no figure fits into.
    """

    style: str = "page"
    """page, paper (one column of a journal) or talk (large print)."""
    width: float | None = None
    """In inches; by default the style's."""
    title: str | None = None
    """Instead of the figure's own; the empty string for none."""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise unknown("style", self.style, STYLES)
        if self.width is not None and not 2.0 <= self.width <= 60.0:
            raise ReportError(f"The width of a figure is from 2 to 60 inches, not {self.width:g}.")

    @property
    def inches(self) -> float:
        """Width in inches."""
        return self.width or STYLES[self.style].width

    @property
    def font(self) -> float:
        """Size of the text in points."""
        return STYLES[self.style].font

    @property
    def small(self) -> float:
        """Size of ticks, names and notes in points."""
        return max(SMALLEST, self.font - 1)

    @property
    def scale(self) -> float:
        """The size of markers, lines and gaps relative to the page style."""
        return self.font / STYLES["page"].font

    def settings(self, families: Sequence[str]) -> dict[str, Any]:
        """Return the settings that Matplotlib gets on top of the style file."""
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
    """Apply the package's Matplotlib style, then restore the settings; the figure's note names missing glyphs."""
    import matplotlib

    settings: Any = extra or {}
    with matplotlib.rc_context(fname=STYLE), matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def fallback_fonts(texts: Iterable[str]) -> tuple[list[str], str]:
    """Return installed fonts that have the characters which the usual font lacks, and the characters that none has."""
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
    """Return a text in one line: line breaks and control characters in names become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write the figure as `stem.png`, `stem.svg`, … (also pdf) and return the paths.

    Equal figures give equal files: no dates, and fixed ids in SVG, whose text stays text. The figure's label, its title
    and in further lines what it shows, goes into the files. Missing folders are made.
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
                content = _described(content.decode(), title, description).encode()
            write_bytes_whole(path, content)
    return paths


def _described(svg: str, title: str, description: str) -> str:
    """Add a description and the role of an image to an SVG, for screen readers."""
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
    """Return the other families that are installed with their characters, those with the most first."""
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if font.style == "normal" and font.weight == 400]
    # a last-resort font has every character, as a box
    files = {font.name: font.fname for font in fonts if not font.name.startswith(("Last Resort", "DejaVu"))}
    families = []
    for family, file in files.items():
        try:
            families.append((family, _characters(file)))
        except (OSError, RuntimeError):  # a font that was removed, or that FreeType cannot read
            continue
    return sorted(families, key=lambda item: (-len(item[1]), item[0]))


def _characters(file: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    return set(map(chr, FT2Font(file).get_charmap()))
