"""Draw the training curves of RUNS: python analysis/training_curves.py RUNS [STEM] writes STEM.png and STEM.svg.

RUNS is a sweep spec (its trials, found in the store) or a store. A panel a variant, over its baseline. Change the call
below for the loss, draw_figure(records, "curves", "test/loss"), or pass it fewer trials by se_lab.report's
filter_records.
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
