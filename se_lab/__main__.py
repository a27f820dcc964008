"""Allow python -m se_lab, where the command is not on the path."""

import sys

from se_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
