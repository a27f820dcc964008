"""Write the report of RUNS as an HTML page: python analysis/report.py RUNS [PAGE].

RUNS is a sweep spec (for its trials in the store), a store, or wandb:entity/project[/sweep]. Edit the call below for
another title or question; to select trials, use filter_records of se_lab.report, as in
filter_records(load_records(runs), {"model.se.reduction": [4, 16]}).
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
