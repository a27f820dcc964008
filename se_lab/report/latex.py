"""LaTeX tables that fit a column or a page, using booktabs and threeparttable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from se_lab.report.columns import BLANK, MINUS, ReportError, unknown_name
from se_lab.report.grid import FittedColumns, Grid, fit

WIDTHS = {"single": 3.15, "double": 6.5}
"""Width of a column and of a two-column page in inches, for common document classes."""
POINTS_PER_INCH = 72.27
_NEVER = 10_000
_SIZE, _LINE, _GAP = 8.0, 9.6, 8.0
"""Font size, line height and column gap in points, set in the table so that its width is known."""


@dataclass(frozen=True)
class Setting:
    """The layout of a LaTeX table."""

    width: str = ""
    """single, double, or inches; by default single, or double for a wide table."""
    caption: str = ""
    """Caption; by default the table's title."""
    label: str = ""
    wide: bool = False
    """Whether the table spans both columns of a page (`table*`)."""

    @property
    def points(self) -> float:
        """The width in points. Raises ReportError for an invalid width."""
        width = self.width or ("double" if self.wide else "single")
        if width in WIDTHS:
            return WIDTHS[width] * POINTS_PER_INCH
        try:
            inches = float(width.removesuffix("in"))
        except ValueError:
            raise unknown_name("width", width, [*WIDTHS, "or inches, such as 5.5"]) from None
        if not 1 <= inches <= 100:
            raise ReportError(f"The width is {width} inches; it must be from 1 to 100.")
        return inches * POINTS_PER_INCH


def latex_text(grid: Grid, setting: Setting) -> str:
    """Format a table in LaTeX, without the columns that do not fit its width."""
    layout = fit(grid, setting.points, _width, _GAP)
    heading_lines = max(map(len, layout.headings))
    columns = [_column(grid, layout, place, heading_lines) for place in range(len(layout.columns))]
    lines = ["    " + " & ".join(row) + r" \\" for row in zip(*(cells for _, cells in columns), strict=True)]
    head, body = lines[:heading_lines], []
    for row, line in enumerate(lines[heading_lines:]):
        body += [r"    \midrule"] * grid.starts_group(row) + [line]
    environment = "table*" if setting.wide else "table"
    label = rf"\label{{{setting.label}}}" if setting.label else ""
    comments = [f"% omitted to fit the width: {', '.join(layout.left_out)}"] if layout.left_out else []
    notes = [rf"    \item[] {_escape(note)}" for note in grid.notes]
    if notes:
        notes = [r"  \begin{tablenotes}[flushleft]\scriptsize\raggedright", *notes, r"  \end{tablenotes}"]
    return "\n".join(
        [
            r"% \usepackage{booktabs,threeparttable}",
            *comments,
            rf"\begin{{{environment}}}[t]",
            r"  \centering",
            r"  \begin{threeparttable}",
            rf"  \caption{{\sloppy {_escape(setting.caption or grid.title)}}}{label}",
            rf"  \fontsize{{{_SIZE:g}}}{{{_LINE:g}}}\selectfont \setlength{{\tabcolsep}}{{{_GAP / 2:g}pt}}"
            + r" \renewcommand{\arraystretch}{1.3}"
            * any(_RANGE.fullmatch(cell) for column in grid.cells for cell in column),
            rf"  \begin{{tabular}}{{@{{}}{''.join(kind for kind, _ in columns)}@{{}}}}",
            r"    \toprule",
            *head,
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
            *notes,
            r"  \end{threeparttable}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


def _column(grid: Grid, layout: FittedColumns, place: int, heading_lines: int) -> tuple[str, list[str]]:
    """Return a column's specifier and its cells, starting with the lines of the heading."""
    column, heading = layout.columns[place], layout.headings[place]
    cells = grid.cells[column]
    head = [""] * (heading_lines - len(heading)) + [_escape(line, unbroken=_NEVER) for line in heading]
    bold = [grid.is_bold(column, row) for row in range(len(cells))]
    if not grid.is_text[column]:
        return "r", head + [_number(cell, cells, best) for cell, best in zip(cells, bold, strict=True)]
    wraps = max(map(_width, cells), default=0.0) > layout.widths[place]
    texts = [
        rf"\raggedright\let\\\tabularnewline {_escape(cell, unbroken=8)}" if wraps else _escape(cell, unbroken=_NEVER)
        for cell in cells
    ]
    texts = [rf"\textbf{{{text}}}" if best else text for text, best in zip(texts, bold, strict=True)]
    return f"p{{{layout.widths[place]:.0f}pt}}" if wraps else "l", head + texts


def _number(cell: str, cells: Sequence[str], bold: bool) -> str:
    """Format a number, padded to the column's longest interval to align decimals."""
    if any(_RANGE.fullmatch(text) for text in cells):
        return _range(cell, cells, bold)
    tails = [text.partition("±")[2].strip() for text in cells]
    longest = max(tails, key=len)
    value, tail = cell.partition("±")[0].strip(), cell.partition("±")[2].strip()
    math = value.replace(MINUS, "-").replace(",", "{,}")
    if not re.fullmatch(r"[-+\d.{},]+", math):
        math, bold = rf"\mbox{{{_escape(value, unbroken=_NEVER)}}}", False
    if not value:
        return ""
    if bold:
        math = rf"\mathbf{{{math}}}"
    if tail:
        tail = rf"\mathbf{{{tail}}}" if bold else tail.replace(",", "{,}")
        padding = rf"\phantom{{{'0' * (len(longest) - len(cell.partition('±')[2].strip()))}}}"
        return rf"${math} \pm {'' if padding.endswith('{}') else padding}{tail}$"
    return rf"${math}\phantom{{{{}}\pm {longest}}}$" if longest else f"${math}$"


def _range(cell: str, cells: Sequence[str], bold: bool) -> str:
    """Format `0.75 (0.42–1.35)` as 0.75 with the distances to both ends."""
    value, plus, minus = _sides(cell)
    if not plus:
        width, longest = max((len(sides[0]), sides[1]) for sides in map(_sides, cells) if sides[1])
        if len(value) > width:  # padding would exceed the measured width
            return _escape(value)
        return rf"{_escape(value)}$\phantom{{{{}}^{{{longest}}}}}$" if value else ""
    digits = rf"\mathbf{{{value}}}" if bold else value
    return rf"${digits}^{{{plus}}}_{{{minus}}}$"


def _sides(cell: str) -> tuple[str, str, str]:
    """Return a cell's value and the signed distances to both ends of its interval, if any."""
    match = _RANGE.fullmatch(cell)
    if match is None:
        return cell, "", ""
    value, low, high = (float(number.replace(",", "")) for number in match.groups())
    decimals = len(match[1].partition(".")[2])
    return match[1], f"+{high - value:.{decimals}f}", f"-{value - low:.{decimals}f}"


_RANGE = re.compile(r"([\d.,]+) \(([\d.,]+)–([\d.,]+)\)")


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "ω": r"$\omega$",
    "²": r"\textsuperscript{2}",
    MINUS: "$-$",
    BLANK: "--",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "√": r"$\surd$",
    "…": r"\dots{}",
    **{char: rf"\{char}" for char in "&%$#_{}"},
}


def _escape(text: str, *, unbroken: int = 15) -> str:
    """Escape text for TeX; words longer than `unbroken` may be broken."""

    def word(text: str) -> str:
        pieces = re.split(r"(?<=[\W_])(?=\w)|(?<=\w{8})(?=\w)", text) if len(text) > unbroken else [text]
        return r"\allowbreak{}".join("".join(_TEX.get(char, char) for char in piece) for piece in pieces)

    return " ".join(map(word, text.split(" ")))


def _width(text: str) -> float:
    """Return the width of a text in points in Computer Modern, the widest of the common fonts."""
    value, plus, minus = _sides(text)
    if plus:
        return _width(value) + 0.75 * max(_width(plus), _width(minus))
    return sum(_EM.get(char, 0.80 if char.isupper() else 0.55) for char in text) * _SIZE


_EM = {
    **dict.fromkeys("ijlt.,:;!|' ", 0.34),
    **dict.fromkeys("frs()[]-", 0.43),
    **dict.fromkeys("mwMW%@&", 0.98),
    **dict.fromkeys("±×−+=<>Δ", 0.88),
    **dict.fromkeys("0123456789", 0.57),
}
"""Character widths in em, slightly larger than in cmr8, since bold digits are wider."""
