"""The README is run: its Python, its sweep spec, its commands; and it reads on a package index as it does here."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from se_lab.cli import VERBS, main
from se_lab.sweep.grammar import read_sweep

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SITE, SOURCE = "https://se-lab.readthedocs.io/", "https://github.com/se-lab/se-lab"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_python_blocks_run_and_print_what_they_say(capsys):
    for block in blocks("python"):
        exec(block, {})
        printed = capsys.readouterr().out.splitlines()
        assert printed == re.findall(r"print\(.*?\)\s+# (.*)", block)


def test_the_sweep_spec_is_one(tmp_path):
    (spec,) = blocks("yaml")
    (tmp_path / "study.yaml").write_text(spec)
    assert len(read_sweep(tmp_path / "study.yaml").trials) == 9


def test_every_command_exists_with_its_flags(capsys):
    commands = [shlex.split(line[2:], comments=True) for block in blocks("console") for line in block.splitlines()]
    assert len(commands) > 5
    for _, verb, *arguments in commands:
        assert verb in VERBS
        with pytest.raises(SystemExit, match="0"):
            main([verb, "--help"])
        known = capsys.readouterr().out
        for flag in re.findall(r"--[\w.-]+", " ".join(arguments)):
            assert flag in known, f"se-lab {verb} has no {flag}"


def test_it_says_how_many_trials_the_demo_has(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["sweep", "sweeps/demo.yaml", "--dry_run", "--store", str(tmp_path)]) == 0
    assert "48 trials" in capsys.readouterr().out and "48 trials" in " ".join(TEXT.split())


def test_it_is_short_and_its_links_and_images_are_absolute():
    assert len(TEXT.splitlines()) < 120
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", TEXT))


def test_its_links_lead_to_pages_and_files_that_are_there():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in re.findall(rf"{SITE}([\w/]*)", TEXT):
        assert not page or f": {page.rstrip('/')}.md" in nav, page
    for path in re.findall(r"(?:se-lab/se-lab/blob/main|se-lab/se-lab/main)/([\w./]+)", TEXT):
        assert (ROOT / path).is_file(), path


def test_site_and_source_have_one_address_everywhere():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f"site_url: {SITE}\n" in config and f"repo_url: {SOURCE}\n" in config
    assert f'Documentation = "{SITE}"' in project and f'Source = "{SOURCE}"' in project
    assert (citation["url"], citation["repository-code"]) == (SITE, SOURCE)
