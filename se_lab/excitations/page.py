"""The explorer: a self-contained HTML page with gates by unit, class and channel."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from se_lab.excitations import measures
from se_lab.excitations.images import class_label
from se_lab.excitations.statistics import ExcitationStatistics, Floats, UnitStatistics
from se_lab.report.page.assemble import assemble
from se_lab.spec import seed_of
from se_lab.store import write_text_whole

if TYPE_CHECKING:
    from PIL import Image

ASSETS = Path(__file__).with_name("assets")
ARRAY_BYTES = 30_000_000
"""Maximum size of means and standard deviations of all nets on a page; with base64 and Plotly, the page has 45 MB."""
WIDE_BYTES = 8_000_000
"""Size up to which a number is stored in two bytes instead of one."""
THUMBNAILS = 4000
"""Maximum number of pictures on a page, about 1.5 kB each."""
THUMBNAIL_SIDE = 64

Picture = Callable[[int], "Image.Image"]


class Detail(NamedTuple):
    """The amount of data on a page."""

    share: float
    """Fraction of each unit's channels."""
    wide: bool
    """Whether a number is stored in two bytes instead of one."""


def write_page(
    pairs: Sequence[tuple[str, ExcitationStatistics]],
    path: str | Path,
    *,
    unit: str,
    classes: Sequence[int],
    picture: Picture | None = None,
    figures: Sequence[Path] = (),
) -> Path:
    """Write the explorer of one net, or of two nets side by side.

    Numbers are rounded to 1/255 of a unit's range, or 1/65535 on small pages. Large pages show a random subset of
    channels. The page mentions both.

    Args:
        pairs: Labels and statistics of one or two nets with the same classes.
        path: The file to write.
        unit: The unit to show first.
        classes: The classes to show first.
        picture: Returns the picture of an image number, for thumbnails of images that excite a channel most and least,
            if the statistics contain them.
        figures: Figures (PNG) of the first net to show without JavaScript, after tables of the units.
    """
    first = pairs[0][1]
    total_bytes = sum(2 * (s.count > 0).sum().item() * sum(site.channels for site in s.sites) for _, s in pairs)
    detail = Detail(min(1.0, ARRAY_BYTES / max(total_bytes, 1)), 2 * total_bytes <= WIDE_BYTES)
    arrays: list[str] = []
    nets = [_net(number, label, s, detail, picture, arrays) for number, (label, s) in enumerate(pairs)]
    data = {
        "title": " and ".join(dict.fromkeys(label for label, _ in pairs)),
        "about": _about(pairs),
        "thinned": ". ".join(filter(None, (_size_remark(detail), measures.few_images(first.count.cpu().numpy())))),
        "classes": [class_label(name) for name in first.classes],
        "folders": first.classes,
        "nets": nets,
        "thumbnails": picture is not None,
        "start": {"unit": unit, "classes": list(classes)},
    }
    page = assemble(
        ASSETS / "explorer.html",
        data,
        [ASSETS / "gates.js", ASSETS / "explorer.js"],
        style=[ASSETS / "explorer.css"],
        static=_static(data, figures),
        arrays="\n".join(arrays),
    )
    path = Path(path)
    write_text_whole(path, page)
    return path


def _net(
    number: int,
    label: str,
    statistics: ExcitationStatistics,
    detail: Detail,
    picture: Picture | None,
    arrays: list[str],
) -> dict[str, Any]:
    mask = (statistics.count > 0).cpu().numpy()
    units, extremes = [], {}
    for place, site in enumerate(statistics.sites):
        unit = statistics.unit(site.name)
        channels = _page_channels(site.name, site.channels, detail.share)
        scales = {}
        for kind in ("mean", "std"):
            values = getattr(unit, kind)[mask][:, channels]
            scales[kind], text = _quantise(values, detail.wide)
            arrays.append(f'<script type="text/plain" id="{kind}-{number}-{place}">{text}</script>')
        units.append(_unit(unit, channels) | scales | {"wide": detail.wide})
        if picture is not None and statistics.top_image.shape[1]:
            extremes[place] = _extremes(statistics, site.name, channels)
    thumbnails = _thumbnails(units, extremes, picture) if picture is not None else {}
    rows = np.where(mask, np.cumsum(mask) - 1, -1)
    return {"label": label, "units": units, "row": rows.tolist(), "thumbnails": thumbnails}


def _unit(unit: UnitStatistics, channels: NDArray[np.intp]) -> dict[str, Any]:
    x, y = measures.density(unit)
    return {
        "name": unit.site.name,
        "stage": unit.site.stage,
        "channels": unit.site.channels,
        "kept": channels.tolist(),
        "all": _round(measures.mean_of_classes(unit)[channels]),
        "selectivity": _round(measures.selectivity_index(unit)[channels]),
        "explained": _round(measures.variance_explained(unit)[channels]),
        "between": _percent(measures.unit_variance_explained(unit)),
        "saturated": [_percent(share) for share in measures.saturation(unit)],
        "saturation": list(measures.saturation_labels([unit])),
        "density": [_round(x), _round(y)],
    }


def _page_channels(name: str, channels: int, share: float) -> NDArray[np.intp]:
    """Return the channels of a unit that are on the page, sorted."""
    count = min(channels, max(50, int(share * channels)))
    if count == channels:
        return np.arange(channels)
    return np.sort(np.random.default_rng(seed_of("page", name)).choice(channels, count, replace=False))


def _quantise(values: Floats, wide: bool) -> tuple[dict[str, float], str]:
    """Return the range of values (K, C), and the values as integers in base64, row by row."""
    low, high = float(values.min()), float(values.max())
    steps = 65535 if wide else 255
    scaled = np.rint((values - low) * (steps / (high - low) if high > low else 0.0))
    raw = scaled.astype("<u2" if wide else "u1").tobytes()
    return {"low": low, "high": high}, base64.b64encode(raw).decode()


def _extremes(statistics: ExcitationStatistics, name: str, channels: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the images (channels, 2, M) that excite each channel most and least, −1 for none."""
    images = statistics.top_image[:, :, statistics.first[name] + channels].cpu().numpy()
    return np.asarray(images.transpose(2, 0, 1))


def _thumbnails(
    units: list[dict[str, Any]], extremes: Mapping[int, NDArray[np.int64]], picture: Picture | None
) -> dict[int, str]:
    """Add image numbers of selective channels to units, and return thumbnails by image number."""
    ranked = sorted(
        (
            (-units[place]["selectivity"][row], place, row)
            for place, channels in extremes.items()
            for row in range(len(channels))
        )
    )
    picture_numbers: set[int] = set()
    for _, place, row in ranked:
        images = [[int(number) for number in side if number >= 0] for side in extremes[place][row]]
        if len(picture_numbers | {number for side in images for number in side}) > THUMBNAILS:
            continue
        picture_numbers.update(number for side in images for number in side)
        units[place].setdefault("pictures", {})[units[place]["kept"][row]] = images
    return {number: _data_uri(picture(number)) for number in sorted(picture_numbers)} if picture else {}


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _about(pairs: Sequence[tuple[str, ExcitationStatistics]]) -> str:
    first = pairs[0][1]
    names = " and ".join(f"{label} ({_origin(label, s.about)})" for label, s in pairs)
    classes = int((first.count > 0).sum())
    return f"{names}: {first.images:,} images of {classes:,} classes from {first.about.get('data', 'unknown data')}"


def _origin(label: str, about: Mapping[str, Any]) -> str:
    """Return the variant and the trial of a label, unless the label contains them."""
    trial = about.get("trial_id", "")
    parts = [about.get("variant", "a net"), f"trial {trial}" if trial and trial not in label else ""]
    return ", ".join(filter(None, parts))


def _static(data: Mapping[str, Any], figures: Sequence[Path]) -> str:
    """Return tables of units and figures, for readers without JavaScript."""
    parts = [f"<h1>Excitations of {html.escape(data['title'])}</h1>", f"<p>{html.escape(data['about'])}</p>"]
    for net in data["nets"]:
        heads = ["unit", "stage", "channels", "variance between classes (ω², %)"]
        heads += [f"gates {name} (%)" for name in net["units"][0]["saturation"]]
        rows = [
            [unit["name"], unit["stage"], unit["channels"], unit["between"], *unit["saturated"]]
            for unit in net["units"]
        ]
        lines = [_row("th", heads), *(_row("td", ["" if cell is None else cell for cell in row]) for row in rows)]
        parts += [f"<h2>{html.escape(net['label'])}</h2>", '<div class="scroll"><table>', *lines, "</table></div>"]
    for figure in figures:
        source = base64.b64encode(figure.read_bytes()).decode()
        name = figure.stem.replace("_", " ")
        parts.append(f'<h2>{name}</h2>\n<img src="data:image/png;base64,{source}" alt="{name}">')
    return "\n".join(parts)


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _size_remark(detail: Detail) -> str:
    sentences = []
    if detail.share < 1:
        sentences.append(
            f"To limit the size of the page, it shows about {100 * detail.share:.0f} % of each unit's channels, at "
            "random, at least 50. The statistics file has all channels."
        )
    if not detail.wide:
        sentences.append("Means and standard deviations are rounded to 1/255 of a unit's range.")
    return " ".join(sentences)


def _round(values: Floats) -> list[float | None]:
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _percent(share: float) -> float | None:
    return round(100 * share, 2) if np.isfinite(share) else None
