"""The web page of FOR: `python app.py`, the same as `python -m for_app`. `--help` tells what it can search."""

import sys

from for_app.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
