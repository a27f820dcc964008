"""The pages of the site: their commands run, their Python prints what they say, what they name is there."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest

from se_lab import DATASETS, EXCITATION, SQUEEZE, UNITS
from se_lab.cli import VERBS, main
from se_lab.report import KINDS
from se_lab.sweep.grammar import read_sweep
from tests.docs.conftest import DOCS, ROOT

BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```(console|python|yaml)\n(.*?)```", re.DOTALL)
PAGES = sorted(path for path in DOCS.glob("*.md") if BLOCK.search(path.read_text(encoding="utf-8")))
TRAINING = ("tutorial", "images", "sweeps", "excitations")
"""Pages whose commands train several trials, or draw many figures."""


@pytest.fixture
def reader(workspace, monkeypatch):
    """Stand in a reader's folder, and forget afterwards what plugins have added."""
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("SE_LAB_STORE", raising=False)
    tables = [(table, set(table)) for table in (SQUEEZE, EXCITATION, DATASETS, UNITS)]
    modules, path = set(sys.modules), list(sys.path)
    yield workspace
    for table, before in tables:
        for name in set(table) - before:
            del table[name]
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in TRAINING)) for page in PAGES]
)
def test_every_command_and_every_python_block_runs(page, reader, capsys):
    for unrun, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        name = re.match(r"# ([\w./]+\.(?:py|yaml))\n", text)
        if language == "yaml" or (name and language == "python"):
            if name:
                (reader / name[1]).write_text(text, encoding="utf-8")
            if language == "yaml":
                assert read_sweep(reader / name[1]).trials
        elif language == "python":
            check_python(text, capsys)
        elif not unrun:
            check_console(text, reader, capsys)
        else:
            for command in commands_in(text):
                check_flags(command, capsys)


@pytest.mark.parametrize("page", TRAINING)
def test_every_command_of_a_page_that_trains_has_its_flags(page, capsys):
    for _, language, text in BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        for command in commands_in(text) if language == "console" else ():
            check_flags(command, capsys)


def commands_in(text):
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


def check_console(text, reader, capsys):
    """Run each command of a block; the lines beneath it, if there are any, are what it prints."""
    trial = next(path.parent.name for path in sorted(reader.glob("runs/*/record.json")) if has_units(path))
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        program, *arguments = shlex.split(command.replace("TRIAL", trial), comments=True)
        assert program == "se-lab"
        capsys.readouterr()
        status = main(arguments)
        said = capsys.readouterr()
        assert status == 0, f"{command}\n{said.out}{said.err}"
        if expected.strip():
            same = doctest.OutputChecker().check_output(
                expected, said.out, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            assert same, f"{command} prints\n{said.out}"


def has_units(record):
    return '"model.se.insertion": "standard"' in record.read_text(encoding="utf-8")


def check_python(text, capsys):
    """Run a block; each print with a comment prints what the comment says."""
    capsys.readouterr()
    exec(text, {"__name__": "page"})
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    claims = re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert printed[len(printed) - len(claims) :] == claims


def check_flags(command, capsys):
    """Look for a command's verb and flags in its help."""
    program, verb, *arguments = shlex.split(command, comments=True)
    assert program == "se-lab" and verb in VERBS
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    known = capsys.readouterr().out
    main_flags = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    for flag in main_flags:
        assert flag.replace("-", "_") in known.replace("-", "_"), f"se-lab {verb} has no {flag}"


def test_the_tests_that_hold_the_guarantees_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (DOCS / "guarantees.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


def test_every_message_of_troubleshooting_is_in_the_code():
    source = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "se_lab").rglob("*.py")))
    source = re.sub(r'"\s+(?:f?")', "", source)  # literals that stand one after the other
    messages = re.findall(r"^\*\*(`.+`)\*\*$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        for fragment in re.split("…|`", message):
            text = fragment.strip(" ,'();:")
            assert text in source, f"no message of SE-Lab's says {text!r}"


def test_every_file_that_a_page_names_is_there():
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(se_lab/[\w./]+|benchmarks/\w+\.\w+)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
    for name in re.findall(r"`(\w+\.yaml)`", (DOCS / "paper.md").read_text(encoding="utf-8")):
        assert (ROOT / "sweeps" / name).is_file(), name


def test_every_shipped_ablation_of_the_paper_has_its_row():
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    for file in (ROOT / "sweeps").glob("*.yaml"):
        assert (
            file.stem.endswith("_cifar")
            or file.name.startswith(("demo", "units", "variance"))
            or f"`{file.name}`" in text
        )


def test_pages_say_no_path_of_a_machine():
    for page in [*DOCS.glob("**/*.md"), Path(ROOT, "README.md")]:
        assert not re.search(r"/(?:root|home|work)/", page.read_text(encoding="utf-8")), page


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]:
        if ".ipynb_checkpoints" not in page.parts:
            assert page.relative_to(DOCS).as_posix() in nav


def test_every_kind_of_figure_is_in_the_gallery():
    from site_study import STUDY_FIGURES

    assert STUDY_FIGURES.keys() == set(KINDS)
