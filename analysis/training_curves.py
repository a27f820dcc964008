"""Draw the training curves of RUNS: python analysis/training_curves.py RUNS [STEM].

Writes STEM.png and STEM.svg, with a panel for each variant and its baseline. RUNS is a sweep spec (for its trials in
the store) or a store. Edit the call below for the loss, as in draw_figure(records, "curves", "test/loss"), or use
filter_records of se_lab.report to select trials.
"""

import argparse

from se_lab import load_records
from se_lab.report import draw_figure, save_figure


def main(runs: str, stem: str) -> None:
    for path in save_figure(draw_figure(load_records(runs), "curves", "test/top1_error"), stem):
        print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS")
    parser.add_argument("stem", metavar="STEM", nargs="?", default="training_curves")
    main(**vars(parser.parse_args()))
