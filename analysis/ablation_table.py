"""Print the ablation table of RUNS: python analysis/ablation_table.py RUNS [FORMAT].

RUNS is a sweep spec (for its trials in the store), a store, or wandb:entity/project[/sweep]; FORMAT is terminal,
markdown, csv, latex, json or html. Edit the call below for other columns, rows or filters.
"""

import argparse

from se_lab import load_records
from se_lab.report import ablation_table


def main(runs: str, format: str) -> None:
    table = ablation_table(load_records(runs), metric="test/top1_error")
    print(table.render(format), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS")
    parser.add_argument("format", metavar="FORMAT", nargs="?", default="terminal")
    main(**vars(parser.parse_args()))
