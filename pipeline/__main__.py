"""``python -m pipeline``: the ``siambench`` command."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
