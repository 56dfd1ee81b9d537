"""``python -m pretrain``: the same as ``siambench pretrain``."""

import sys

from pretrain import VERBS
from siambench.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb(VERBS["pretrain"]))
