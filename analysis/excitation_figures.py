"""Draw the SE paper's Figures 6 and 7 from a statistics file: python analysis/excitation_figures.py FILE [CLASSES].

FILE is the excitations.safetensors that `se-lab excitations` writes; CLASSES are names, WordNet ids or numbers,
separated by commas. Change the calls below for other units, channels or figures.
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
