"""Write the report of RUNS, one HTML page: python analysis/report.py RUNS [PAGE].

RUNS is a sweep spec (its trials, found in the store), a store, or wandb:entity/project[/sweep]. Change the call below
for a title or the question that the study asks; for fewer trials, pass filter_records(load_records(runs),
{"model.se.reduction": [4, 16]}) of se_lab.report.
"""

import argparse

from se_lab import load_records
from se_lab.report import write_report


def main(runs: str, page: str) -> None:
    print(write_report(load_records(runs), page, title=runs, question=["What do SE units change?"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS")
    parser.add_argument("page", metavar="PAGE", nargs="?", default="report.html")
    main(**vars(parser.parse_args()))
