"""What MkDocs calls when it builds the site: pages that are made from the code, the study and other files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import site_reference
import site_study
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the version into the title of every page."""
    (version,) = re.findall(r'^version = "(.+)"$', _text("pyproject.toml"), re.MULTILINE)
    config.site_name = f"SE-Lab {version}"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and figures."""
    pages = {
        "reference/cli.md": site_reference.cli_page(),
        "reference/spec.md": site_reference.spec_page(),
        "units.md": site_reference.units_page(),
        "speed.md": _speed(),
        "contributing.md": _text("CONTRIBUTING.md"),
        "changelog.md": _text("CHANGELOG.md"),
    }
    folder = site_study.study_folder()
    store, figures = site_study.make_study(folder), site_study.fresh(folder / "figures")
    studies = list(site_study.draw_study(store, figures))
    excitations = list(site_study.draw_excitations(store, figures))
    pages["gallery.md"] = _gallery(studies, excitations)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for drawn in [*studies, *excitations]:
        files.append(File.generated(config, f"gallery/{drawn.name}.png", content=drawn.file.read_bytes()))
    for name, file in site_study.live_pages(store, figures).items():
        files.append(File.generated(config, f"live/{name}", content=file.read_bytes()))
    return files


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _speed() -> str:
    """Return the page of measurements: RESULTS.md, its comments for the benchmarks' own use left out."""
    results = re.sub(r"<!-- .*? -->\n?", "", _text("benchmarks/RESULTS.md"))
    results = re.sub(r"^# .*", "# Speed", results, count=1)
    return f"{results}\n\n`make bench` repeats the measurements on your machine.\n"


def _gallery(studies: list[site_study.Drawn], excitations: list[site_study.Drawn]) -> str:
    parts = [
        "# Figure gallery\n",
        "Each figure below was drawn when this site was built, from a study of five variants of a small ResNet with "
        "two seeds and two epochs each, on scikit-learn's digits. They show what each kind looks like; two epochs show "
        "nothing about the variants.\n",
        "In Python, [`draw_figures`](reference/api.md) draws the same figures from a DataFrame of trials.\n",
        "## Figures of a study\n",
        *map(_entry, studies),
        "## Figures of excitations\n",
        *map(_entry, excitations),
        "## Pages\n",
        "[A report of the study](live/report.html) and [an explorer of one net's excitations](live/explorer.html), as "
        "`se-lab report` and `se-lab excitations` write them.\n",
    ]
    return "\n".join(parts)


def _entry(drawn: site_study.Drawn) -> str:
    return (
        f"### `{drawn.name}` {{#{drawn.name}}}\n\n{drawn.shows}\n\n```console\n$ {drawn.call}\n```\n\n"
        f"![{drawn.name}](gallery/{drawn.name}.png)\n"
    )
