"""The site builds strictly, its links lead somewhere, and each kind of figure is in its gallery."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from urllib.parse import unquote

import pytest
import yaml

from se_lab.report import KINDS
from tests.docs.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(study, tmp_path_factory):
    """Build the site from the study, and return its folder."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    code = "import sys; from mkdocs.__main__ import cli; cli(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT, env={**os.environ, "SE_LAB_DOCS": str(study)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_internal_link_leads_to_a_page_and_to_a_place_on_it(site):
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if "live" not in page.parts}
    assert len(texts) > 20
    for page, text in texts.items():
        for link in map(unescape, re.findall(r'(?:href|src)="([^"]+)"', text)):
            if re.match(r"[a-z]+:|//|/|#__", link) or page.name == "404.html":
                continue
            path, _, place = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)} links to {link}"
            if place and target.suffix == ".html" and target in texts:
                assert f'id="{unquote(place)}"' in texts[target], f"{page.relative_to(site)} links to {link}"


def test_the_gallery_has_every_kind_of_figure(site):
    from site_study import EXCITATION_FIGURES

    text = (site / "gallery" / "index.html").read_text(encoding="utf-8")
    for kind in [*KINDS, *EXCITATION_FIGURES]:
        (figure, *_) = re.findall(rf'src="([^"]*{kind}[^"]*\.png)"', text)
        assert (site / "gallery" / figure).read_bytes().startswith(b"\x89PNG")


def test_every_figure_that_excitations_writes_is_in_the_gallery(site, study):
    from site_study import EXCITATION_FIGURES

    written = {file.stem for part in ("one", "spatial") for file in (study / "figures" / part).glob("*.png")}
    assert written == EXCITATION_FIGURES.keys() - {"training"}


def test_the_live_pages_are_pages(site):
    for name in ("report.html", "explorer.html"):
        assert "<html" in (site / "live" / name).read_text(encoding="utf-8")[:2000]


def test_the_version_stands_on_every_page_as_in_the_changelog_and_the_citation(site):
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"SE-Lab {version}" in (site / "index.html").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d[\w.]*)\]", changelog, re.MULTILINE)[0] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
