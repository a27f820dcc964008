"""A Matplotlib figure under construction, with sizes of panels and text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from se_lab.report.figures.chart import Chart
from se_lab.report.figures.look import Look, fallback_fonts, settings_of_style
from se_lab.report.figures.names import Names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL = 1.9  # minimum width of a panel in inches at the base font size
_LINE = 1.35  # line height relative to the font size


@dataclass
class Sheet:
    """The figure of a chart under construction."""

    figure: Figure
    chart: Chart
    look: Look
    across: int
    """Number of panels in a row."""
    missing: str
    """Characters that no installed font has."""
    names: Names = field(default_factory=Names)
    two_lines: bool = False
    """Whether names of rows need two lines."""
    below: float = 0.0
    """Height of rotated names below a panel, in pixels."""
    heading: list[Any] = field(default_factory=list)
    """The text objects of title and note."""

    @property
    def down(self) -> int:
        """Number of rows of panels."""
        return -(-len(self.chart.panels) // self.across)

    @property
    def width(self) -> float:
        """Width of the figure in pixels."""
        return self.look.inches * self.figure.dpi

    @property
    def panel_width(self) -> float:
        """Approximate width of a panel in pixels, including labels."""
        return (self.width - self.lines(3)) / self.across

    @property
    def plot_width(self) -> float:
        """Approximate width of a panel in pixels without labels and colour bar."""
        has_key = self.chart.color_key or any(panel.cells for panel in self.chart.panels)
        return (self.panel_width - self.lines(4.5)) * (0.8 if has_key else 1.0)

    @property
    def body(self) -> float:
        """Height of all panels in pixels."""
        return self.down * (self.panel_height + self.below)

    @property
    def panel_height(self) -> float:
        """Height of a panel in pixels, with labels but without rotated names."""
        look, rows = self.look, self.chart.rows
        if rows:
            points = rows * (1.75 if self.two_lines else 1.0) * 1.65 * look.small + 4.5 * look.font
            return points * self.figure.dpi / 72
        is_flat = self.down > 1 and self.across == 1
        inches = (0.4 if is_flat else 0.64) * self.panel_width / self.figure.dpi + 0.3 * look.scale
        return float(np.clip(inches, 1.7 * look.scale, 4.0 * look.scale)) * self.figure.dpi

    def lines(self, count: float, size: float = 0.0) -> float:
        """Return the height of lines of text in pixels, by default in the small font size."""
        return count * _LINE * (size or self.look.small) * self.figure.dpi / 72

    def measure(self, text: str, size: float = 0.0) -> float:
        """Return the width of a line of text in pixels, by default in the small font size."""
        from matplotlib.font_manager import FontProperties

        canvas: Any = self.figure.canvas
        font = FontProperties(size=size or self.look.small)
        return float(canvas.get_renderer().get_text_width_height_descent(text, font, False)[0])

    def measure_label(self, text: str) -> float:
        """Return the width of a line of text in pixels, in the font size of titles and labels."""
        return self.measure(text, self.look.font)


@contextmanager
def open_sheet(chart: Chart, look: Look) -> Iterator[Sheet]:
    """Return a context with an empty figure, and fonts for all characters of the chart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families, missing = fallback_fonts(chart.strings())
    with settings_of_style(look.settings(families)):
        columns = max(1, min(chart.columns, len(chart.panels), int(look.inches / (_PANEL * look.scale))))
        if columns > 2 and len(chart.panels) == columns + 1:  # avoids a single panel in the second row
            columns -= 1
        figure = Figure(figsize=(look.inches, 3.0))
        FigureCanvasAgg(figure)
        yield Sheet(figure, chart, look, columns, missing)
