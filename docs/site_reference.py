"""The reference pages of the command line and of a trial's fields, made from the parsers themselves."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
from collections.abc import Iterator
from unittest import mock

from se_lab.cli import VERBS, main
from se_lab.report import paper_rows
from se_lab.spec import ExecSpec, RunSpec, dotted
from se_lab.spec.flags import add_trial_flags
from se_lab.spec.parser import Parser
from se_lab.units.table import UNITS

SECTIONS = {
    "model": "The backbone",
    "model.se": "The units",
    "data": "The images",
    "optim": "The optimizer",
    "train": "The training",
}
"""Sections of a trial's fields, with their headings."""

_HEAD = "| field | default | meaning |\n|---|---|---|"


def cli_page() -> str:
    """Return the reference of all verbs, in Markdown: usage, arguments, flags, defaults."""
    parts = [
        "# Commands\n",
        "Every verb is `se-lab VERB …`. Flags are written `--flag value` or `--flag=value`. The exit status is 0 when "
        "everything succeeded, 1 when a trial failed or a check found something, 2 for wrong input, and 75 when a "
        "command was stopped and the same command resumes it.\n",
        "| verb | what it does |\n|---|---|",
        *(f"| [`{verb}`](#{verb}) | {_cell(about)} |" for verb, (_, about) in VERBS.items()),
    ]
    for verb in VERBS:
        parser = parser_of(verb)
        parts += [f"\n## `{verb}` {{#{verb}}}\n", f"{parser.description or ''}\n"]
        if verb in ("train", "profile"):
            fields = "all [fields of a trial](spec.md), each as a flag under its dotted key"
            parts.append(f"Besides the flags below it takes {fields}.\n")
        parts += [f"```text\n{_usage(verb, parser)}\n```\n", "| argument | default | meaning |\n|---|---|---|"]
        own = {*dotted(RunSpec())} if verb == "train" else set()  # its fields have a page of their own
        parts += [_row(action) for action in actions_of(parser) if key_of(action) not in own]
    return "\n".join(parts) + "\n"


def spec_page() -> str:
    """Return the reference of a trial's fields, and of where and how it runs, in Markdown."""
    parser = Parser("se-lab train")
    add_trial_flags(parser)
    fields = {key_of(action): action for action in actions_of(parser)}
    parts = [
        "# Fields of a trial\n",
        "A trial is described by the fields below. The same dotted keys are flags of `se-lab train`, parameters of a "
        "sweep spec, keys of a configuration file (`--config`), and, as nested dataclasses, arguments of "
        "[`RunSpec`](api.md).\n",
        "Fields that can change a result are hashed into the trial's id, which names its folder in the store. Fields "
        "of [where and how it runs](#execution) are recorded, and are not part of the id.\n",
    ]
    for section, heading in SECTIONS.items():
        parts += [f"\n## {heading}: `{section}` {{#{section.replace('.', '-')}}}\n", _HEAD]
        parts += [_row(fields[key], key) for key in dotted(RunSpec()) if key.rpartition(".")[0] == section]
    parts += ["\n## The seed {#seed}\n", _HEAD, _row(fields["seed"], "seed")]
    execution = [_row(fields[key], key) for key in dotted(ExecSpec())]
    parts += ["\n## Where and how it runs {#execution}\n", _HEAD, *execution]
    return "\n".join(parts) + "\n"


def units_page() -> str:
    """Return the page of all units: name, paper, and the fields that can change each."""
    parts = [
        "# Units\n",
        "A unit maps feature maps (N, C, H, W) to the same shape, and scales channels or positions. "
        "`model.se.unit` names it; `model.se.insertion` and `model.se.stages` say where it goes; the fields listed "
        "beside it change it. A field that cannot change a unit is refused when it is set.\n",
        "The last two columns are what the units' papers, or their authors' repositories, print for ResNet-50 on "
        "ImageNet: top-1 error in %, and its difference to the same source's ResNet-50 in points. Each was trained "
        "under its own recipe. A dash means that no source with the figure could be read. `se-lab table --paper units` "
        "sets them beside a study of yours and names the sources.\n",
        "| `model.se.unit` | what it does | source | fields of `model.se` | top-1 error | Δ |",
        "|---|---|---|---|---|---|",
    ]
    figures = _printed_errors()
    for name, unit in UNITS.items():
        fields = ", ".join(f"`{field}`" for field in unit.fields)
        about = _cell((unit.__doc__ or "").partition("\n")[0])
        error, difference = figures.get(name, ("-", "-"))
        parts.append(f"| `{name}` | {about} | {_cell(unit.reference)} | {fields} | {error} | {difference} |")
    parts += [
        "\n`se-lab profile --model.se.unit NAME` counts what a unit costs in any backbone. If the backbone has SE "
        "units already, `--model.existing_se replace` turns them into the chosen unit.\n",
        "A unit of your own is [a class and one entry of the table](extend.md#unit).\n",
    ]
    return "\n".join(parts)


def _printed_errors() -> dict[str, tuple[str, str]]:
    """Return the printed top-1 error of each unit, and its difference to its source's plain network."""
    rows = paper_rows("units")
    rows = rows[rows["model.se.insertion"] != "none"]
    errors, bases = rows["test/top1_error"], rows["test/top1_error:base"]
    texts = (
        (f"{error:.2f}", "-" if math.isnan(base) else f"{error - base:+.2f}".replace("-", "−"))
        for error, base in zip(errors, bases, strict=True)
    )
    return dict(zip(rows["model.se.unit"], texts, strict=True))


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser that a verb builds, caught when it is asked for help."""
    caught: list[argparse.ArgumentParser] = []
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda self, file=None: caught.append(self)),
        contextlib.suppress(SystemExit),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        main([verb, "--help"])
    return caught[0]


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield a parser's arguments, without help and without flags that stand for a whole section."""
    sections = {*SECTIONS, "slurm"}
    for action in parser._actions:
        if action.dest != "help" and action.help != argparse.SUPPRESS and key_of(action) not in sections:
            yield action


def key_of(action: argparse.Action) -> str:
    """Return the name of an argument: of a flag without its hyphens."""
    return action.option_strings[-1].lstrip("-") if action.option_strings else action.dest


def _usage(verb: str, parser: argparse.ArgumentParser) -> str:
    positional = [
        (action.metavar if isinstance(action.metavar, str) else action.dest)
        + ("…" if action.nargs in ("+", "*") else "")
        for action in actions_of(parser)
        if not action.option_strings
    ]
    return " ".join(["se-lab", verb, *positional, "[flags]"])


def _row(action: argparse.Action, key: str = "") -> str:
    """Return the line of an argument, or of the field of that key."""
    meaning, _, default = (action.help or "").replace("%%", "%").partition(" (default: ")
    default = default.removesuffix(")") or _text(action.default)
    if not action.option_strings:
        name = action.metavar if isinstance(action.metavar, str) else action.dest
    else:
        value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else "")
        values = value if isinstance(value, str) else " ".join(value)
        name = f"{', '.join(action.option_strings)} {'' if action.nargs == 0 else values}".strip()
    return f"| `{_cell(key or name)}` | {f'`{_cell(default)}`' if default else ''} | {_cell(meaning)} |"


def _text(value: object) -> str:
    if value is None or value is False or value == []:
        return ""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
