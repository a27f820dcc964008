"""W&B's own search engine, the package sweeps 0.3.0, in an environment of its own: it answers on stdin and stdout.

Run by `test_grammar`; not part of the package, whose NumPy it does not go with.
"""

import json
import sys

from sweeps.params import HyperParameter

from sweeps import SweepRun, next_runs, schema_violations_from_proposed_config, stop_runs


def answer(question):
    """Return the engine's answer to one question."""
    if "axis" in question:
        parameter = HyperParameter("p", question["axis"])
        return [parameter.type, [parameter.ppf(u) for u in question["u"]]]
    if "grid" in question:
        runs = next_runs(question["grid"], [], validate=False, n=question["n"])
        return [{name: entry["value"] for name, entry in run.config.items()} for run in runs if run is not None]
    if "stop" in question:
        name = question["stop"]["metric"]["name"]
        runs = [
            SweepRun(name=str(number), state=state, history=[{name: value} for value in history])
            for number, (state, history) in enumerate(question["runs"])
        ]
        return sorted(int(run.name) for run in stop_runs(question["stop"], runs))
    try:
        return schema_violations_from_proposed_config(question["spec"])
    except (ValueError, AssertionError) as error:
        return [str(error)]


json.dump([answer(question) for question in json.load(sys.stdin)], sys.stdout, default=lambda scalar: scalar.item())
