"""Draw error against cost for RUNS: python analysis/tradeoff.py RUNS [STEM].

Writes STEM_params.png, STEM_params.svg and so on. RUNS is a sweep spec (for its trials in the store), a store, or
wandb:entity/project[/sweep].
"""

import argparse

from se_lab import load_records
from se_lab.report import draw_figure, save_figure


def main(runs: str, stem: str) -> None:
    records = load_records(runs)
    for cost in ("params", "macs", "step_ms"):
        for path in save_figure(draw_figure(records, "tradeoff", cost=cost), f"{stem}_{cost}"):
            print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS")
    parser.add_argument("stem", metavar="STEM", nargs="?", default="tradeoff")
    main(**vars(parser.parse_args()))
