"""``python -m reports``: the same as ``siambench report``."""

import sys

from reports import VERBS
from siambench.cli import run_verb

sys.exit(run_verb(VERBS["report"]))
