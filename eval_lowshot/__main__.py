"""``python -m eval_lowshot``: the same as ``siambench svm``."""

import sys

from eval_lowshot import VERBS
from siambench.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb(VERBS["svm"]))
