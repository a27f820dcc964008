"""The reference: every verb, flag and field stands in it, with its meaning."""

from __future__ import annotations

import re

import pytest

from se_lab import UNITS
from se_lab.cli import VERBS, main
from se_lab.spec import ExecSpec, RunSpec, dotted


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_that_a_verbs_help_lists_stands_in_the_reference(verb, capsys):
    from site_reference import cli_page, spec_page

    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    flags = set(re.findall(r"^  (?:-\w, |-\w \S+, )?(--[\w.-]+)", capsys.readouterr().out, re.MULTILINE))
    section = cli_page().partition(f"\n## `{verb}`")[2].partition("\n## ")[0]
    fields = {f"--{key}" for key in dotted(RunSpec()) if f"| `{key}` |" in spec_page()}
    sections = {"--model", "--model.se", "--data", "--optim", "--train", "--slurm"}
    missing = {flag for flag in flags if not re.search(rf"`(?:-\w, )?{re.escape(flag)}[ `]", section)}
    assert missing - {"--help"} - sections - (fields if verb == "train" else set()) == set()


def test_every_field_has_its_default_and_its_meaning():
    from site_reference import spec_page

    rows = {row.split("`")[1]: row.split(" | ") for row in spec_page().splitlines() if row.startswith("| `")}
    assert rows.keys() == {*dotted(RunSpec()), *dotted(ExecSpec())}
    for key, (_, _, meaning) in rows.items():
        assert len(meaning) > 8, f"{key} is not explained"
    assert rows["model.se.reduction"][1] == "`16`" and rows["optim.lr"][1] == "`0.1`"


def test_the_page_of_units_has_every_unit_and_the_figures_whose_source_is_known():
    from site_reference import units_page

    lines = [line for line in units_page().splitlines() if line.startswith("| `")]
    rows = {line.split("`")[1]: line.strip("| ").split(" | ") for line in lines}
    assert rows.pop("model.se.unit") and rows.keys() == set(UNITS)
    assert rows["srm"][-2:] == ["22.87", "−1.24"]  # Lee et al. 2019: 77.13 and 75.89 % accuracy
    assert rows["cbam"][-2:] == ["22.66", "-"] and rows["ge"][-2:] == ["-", "-"]
