"""The command line: `python3 tests/cluster/box --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from box.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
