"""``python -m convert`` is ``siambench convert``."""

import sys

from convert import VERBS
from siambench.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb(VERBS["convert"]))
