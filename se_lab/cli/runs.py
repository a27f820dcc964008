"""Flags of the verbs that read trials."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from se_lab.cli.parser import add_flags
from se_lab.spec import SpecError
from se_lab.spec.parser import Parser

if TYPE_CHECKING:
    import pandas as pd


def runs_parser(prog: str, description: str, runs: str = "+") -> Parser:
    """Return a parser with RUNS, --store, --sweep_seed, --metric and --where."""
    parser = Parser(prog=prog, description=description)
    add_runs(parser, runs)
    add_flags(parser, "store", "sweep_seed")
    parser.add_argument("--metric", default="test/top1_error", help="The metric to compare; default test/top1_error.")
    add_where(parser)
    parser.add_argument("--strict", action="store_true", help="Refuse trials that ran under different conditions.")
    return parser


def add_runs(parser: ArgumentParser, nargs: str = "+") -> None:
    """Add RUNS."""
    parser.add_argument(
        "runs", nargs=nargs, metavar="RUNS", help="Sweep specs, for their trials in the store; or stores."
    )


def add_where(parser: ArgumentParser) -> None:
    """Add --where."""
    text = "Keep only trials matching KEY=VALUE; repeating a key means OR, different keys mean AND."
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help=text)


def where_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE pairs; a repeated key matches any of its values."""
    values: dict[str, list[str]] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise SpecError(f"--where is {pair!r}; it must be KEY=VALUE, such as model.se.squeeze=max")
        values.setdefault(key, []).append(value)
    return {key: choices[0] if len(choices) == 1 else choices for key, choices in values.items()}


def records_of(options: Namespace) -> pd.DataFrame:
    """Return the records of RUNS that match --where."""
    from se_lab.report.variants import filter_records
    from se_lab.sweep.records import load_records

    where = where_of(options.where)
    records = filter_records(load_records(options.runs, options.store, sweep_seed=options.sweep_seed), where)
    if getattr(options, "strict", False):
        refuse_mixed(records)
    return records


def refuse_mixed(records: pd.DataFrame) -> None:
    """Raise SpecError for trials that ran under different conditions."""
    from se_lab.report.notes import mixed_conditions

    if mixtures := mixed_conditions(records):
        raise SpecError(f"--strict: the trials ran under different conditions: {'; '.join(mixtures)}")
