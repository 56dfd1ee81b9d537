"""``python -m eval_linear``: the ``linear`` verb (kNN is ``python -m eval_linear.knn``)."""

import sys

from eval_linear import VERBS
from siambench.cli import run_verb

sys.exit(run_verb(VERBS["linear"]))
