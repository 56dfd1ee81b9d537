"""``python -m eval_detection`` is ``siambench detect``."""

import sys

from eval_detection import VERBS
from siambench.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb(VERBS["detect"]))
