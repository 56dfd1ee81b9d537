"""Every verb of every room, in the order the help prints them."""

import convert
import eval_detection
import eval_linear
import eval_lowshot
import eval_segmentation
import pipeline
import pretrain
import reports
from siambench.config import Verb

VERBS: dict[str, Verb] = {
    **pipeline.VERBS,
    **pretrain.VERBS,
    **convert.VERBS,
    **eval_linear.VERBS,
    **eval_lowshot.VERBS,
    **eval_detection.VERBS,
    **eval_segmentation.VERBS,
    **reports.VERBS,
}
# What a run file may list: the verbs that write a record.
EVALUATIONS = (
    "linear",
    "knn",
    *eval_lowshot.VERBS,
    *eval_detection.VERBS,
    *eval_segmentation.VERBS,
)
