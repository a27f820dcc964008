"""Run se-lab as python -m se_lab.cli."""

import sys

from se_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
