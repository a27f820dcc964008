"""Excitation figures of variants, on the page of a study or on additional pages."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any

from se_lab.report.page.trials import folders
from se_lab.report.variants import Study
from se_lab.store import write_text_whole

PICTURES = ("figure_6", "figure_7", "distribution", "selectivity", "saturation", "class_similarity", "unit_similarity")
"""The figures of a trial, the most informative first."""
EXPLORER = "explorer.html"


def excitation_data(study: Study, room: int, subfolder: Path | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return figures of one trial per variant that fit in `room` bytes, and other paths.

    With `subfolder`, no figure is omitted: all figures of a variant are on a page in this folder.
    """
    first_trials = _first_trials(study)
    sections: dict[int, dict[str, Any]] = {}
    omitted_paths = []
    for variant, (name, trial, _) in first_trials.items():
        sections[variant] = {"variant": variant, "name": name, "trial": trial, "pictures": [], "links": []}
    if subfolder is not None:
        for (variant, (name, trial, folder)), page in zip(
            first_trials.items(), excitation_pages(study, subfolder), strict=True
        ):
            sections[variant]["links"] = _links(f"Excitations of {name}, trial {trial}", folder, page)
    for picture in PICTURES:
        for variant, (_, _, folder) in first_trials.items():
            path = _figure(folder, picture)
            if path is None:
                continue
            source = _source(path)
            if len(source) > room:
                omitted_paths.append(str(path))
                continue
            room -= len(source)
            sections[variant]["pictures"].append({"name": picture.replace("_", " "), "source": source})
    entries = [
        sections[variant] for variant in sorted(sections) if sections[variant]["pictures"] or sections[variant]["links"]
    ]
    return entries, omitted_paths if subfolder is None else []


def excitation_pages(study: Study, folder: Path) -> list[Path]:
    """Return the paths of a study's pages of excitation figures in a folder."""
    return [folder / f"excitations-{variant}.html" for variant in _first_trials(study)]


def _first_trials(study: Study) -> dict[int, tuple[str, str, Path]]:
    """Return name, first trial with excitations, and their folder, by variant."""
    trials = study.trials
    result: dict[int, tuple[str, str, Path]] = {}
    for variant, trial, folder in zip(trials["variant"], trials["trial_id"], folders(study), strict=True):
        if folder is not None and (folder / "excitations").is_dir():
            name = str(study.variants["variant"].iloc[variant])
            result.setdefault(int(variant), (name, str(trial), folder / "excitations"))
    return result


def _links(title: str, folder: Path, page: Path) -> list[dict[str, str]]:
    """Write the page of a variant's figures; return links to the page and the explorer."""
    figures = [(picture.replace("_", " "), path) for picture in PICTURES if (path := _figure(folder, picture))]
    parts = [f'<h2>{picture}</h2>\n<img src="{_source(path)}" alt="{picture}">' for picture, path in figures]
    write_text_whole(page, plain_page(title, "\n".join(parts)))
    links = [{"text": f"All {len(figures)} figures", "href": f"{page.parent.name}/{page.name}"}]
    if (folder / EXPLORER).exists():
        links.append({"text": "Explorer", "href": os.path.relpath(folder / EXPLORER, page.parent.parent)})
    return links


def plain_page(title: str, body: str) -> str:
    """Return an HTML page without scripts; the caller escapes all data in `body`."""
    style = Path(__file__).with_name("assets") / "page.css"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style.read_text(encoding='utf-8')}</style>\n</head>\n"
        f'<body>\n<main class="static">\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _figure(folder: Path, picture: str) -> Path | None:
    """Return the file of a figure, an SVG unless more than three times as large as the PNG."""
    paths = [path for suffix in ("svg", "png") if (path := folder / f"{picture}.{suffix}").exists()]
    return min(paths, key=lambda path: path.stat().st_size / (3 if path.suffix == ".svg" else 1), default=None)


def _source(path: Path) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
