"""Draw the paper's Figures 6 and 7: python analysis/excitation_figures.py FILE [CLASSES].

FILE is an excitations.safetensors written by `se-lab excitations`; CLASSES are names, WordNet ids or numbers, separated
by commas. Edit the calls below for other units, channels or figures.
"""

import argparse
from pathlib import Path

from se_lab.excitations.figures import activations, deviations
from se_lab.excitations.images import choose_classes
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.report import save_figure
from se_lab.report.figures.image import draw


def main(file: str, classes: str) -> None:
    statistics = ExcitationStatistics.load(file)
    chosen = choose_classes(classes.split(",") if classes else [], statistics.classes)
    folder = Path(file).parent
    for chart in (activations(statistics, chosen), deviations(statistics, chosen)):
        for path in save_figure(draw(chart), folder / chart.key):
            print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("classes", metavar="CLASSES", nargs="?", default="")
    main(**vars(parser.parse_args()))
