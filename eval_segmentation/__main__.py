"""``python -m eval_segmentation`` is ``siambench segment``."""

import sys

from eval_segmentation import VERBS
from siambench.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb(VERBS["segment"]))
