"""Draw docs/assets/se_unit.svg and .png, the figure of an SE unit: python docs/draw_unit.py."""

import itertools
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

INK, GREY, LIGHT = "#1f2937", "#6b7280", "#eef2ff"
HUES = ["#3b4cc0", "#6f92f3", "#aac7fd", "#dddddd", "#f7b89c", "#e7745b", "#b40426"]
GATES = [0.9, 0.35, 0.75, 0.15, 0.6, 0.25, 1.0]
"""One gate a channel, made up for the picture."""


def cube(axes, x, y, strengths):
    """Draw feature maps, one slice per channel, the last in front."""
    for number, (hue, strength) in enumerate(zip(HUES, strengths, strict=True)):
        left, low = x + 0.16 * number, y - 0.09 * number
        axes.add_patch(Rectangle((left, low), 1.1, 1.1, facecolor="white", edgecolor=INK, linewidth=0.8))
        axes.add_patch(Rectangle((left, low), 1.1, 1.1, facecolor=hue, alpha=strength, edgecolor=INK, linewidth=0.8))


def vector(axes, x, y, strengths):
    """Draw one number per channel as a column of cells."""
    for number, (hue, strength) in enumerate(zip(HUES, strengths, strict=True)):
        place = (x, y - 0.2 * number)
        axes.add_patch(Rectangle(place, 0.3, 0.2, facecolor="white", edgecolor=INK, linewidth=0.8))
        axes.add_patch(Rectangle(place, 0.3, 0.2, facecolor=hue, alpha=strength, edgecolor=INK, linewidth=0.8))


def step(axes, x, y, text, width=1.25, height=0.62):
    """Draw a box with the name of an operation, around (x, y)."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0.04", facecolor=LIGHT, edgecolor=HUES[0]))
    axes.text(x, y, text, ha="center", va="center", fontsize=9.5, color=INK)


def arrow(axes, *points):
    """Draw a line through the points, with a head at the last."""
    for start, end in itertools.pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=INK, linewidth=1.2, solid_capstyle="round")
    axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2})


def label(axes, x, y, text, **style):
    """Write a caption centred at (x, y)."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 9, "color": GREY} | style)


def draw() -> Figure:
    """Return the figure: maps, squeeze, excitation, scale."""
    figure = Figure(figsize=(9.6, 3.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 13.2), ylim=(0, 4.8), aspect="equal")
    axes.axis("off")
    cube(axes, 0.4, 1.15, [0.75] * 7)
    label(axes, 1.4, 0.2, "block output x\n$C \\times H \\times W$")
    arrow(axes, (1.6, 2.35), (1.6, 3.6), (3.0, 3.6))
    step(axes, 3.75, 3.6, "squeeze")
    label(axes, 3.75, 3.03, "mean of each channel")
    arrow(axes, (4.45, 3.6), (4.85, 3.6))
    vector(axes, 5.0, 4.2, [0.5] * 7)
    label(axes, 5.15, 2.75, "$C$")
    arrow(axes, (5.42, 3.6), (5.9, 3.6))
    axes.add_patch(Polygon([(6.0, 4.35), (6.75, 3.95), (6.75, 3.25), (6.0, 2.85)], facecolor=LIGHT, edgecolor=HUES[0]))
    axes.add_patch(Polygon([(7.65, 4.35), (6.9, 3.95), (6.9, 3.25), (7.65, 2.85)], facecolor=LIGHT, edgecolor=HUES[0]))
    label(axes, 6.36, 3.6, "FC\nReLU", color=INK, fontsize=8.5)
    label(axes, 7.29, 3.6, "FC\nsigmoid", color=INK, fontsize=8.5)
    label(axes, 6.83, 2.55, "excitation, width $C / r$")
    arrow(axes, (7.72, 3.6), (8.2, 3.6))
    vector(axes, 8.35, 4.2, GATES)
    label(axes, 8.5, 2.75, "gates s")
    arrow(axes, (8.77, 3.6), (9.45, 3.6), (9.45, 1.72))
    axes.add_patch(matplotlib.patches.Circle((9.45, 1.4), 0.3, facecolor="white", edgecolor=INK))
    label(axes, 9.45, 1.4, "×", color=INK, fontsize=14)
    arrow(axes, (2.75, 1.4), (9.12, 1.4))
    arrow(axes, (9.77, 1.4), (10.6, 1.4))
    cube(axes, 10.75, 1.15, [0.85 * gate for gate in GATES])
    label(axes, 11.75, 0.2, "each channel scaled by its gate\n$C \\times H \\times W$")
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "se-lab", "font.family": "DejaVu Sans"})
    folder = Path(__file__).parent / "assets"
    drawn = draw()
    drawn.savefig(folder / "se_unit.svg", metadata={"Date": None})
    drawn.savefig(folder / "se_unit.png", dpi=150, metadata={"Software": None})
