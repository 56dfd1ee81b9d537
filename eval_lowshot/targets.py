"""Labels as the SVMs take them."""

from collections.abc import Sequence

import numpy as np


def targets(labels: np.ndarray, columns: Sequence[int] | np.ndarray, difficult: str) -> np.ndarray:
    """Of some classes, int8 (n, len(columns)) of 1, -1 and 0 for images that are left out.

    Args:
        labels: int8 (n, classes) of 1 present, 0 left out, -1 absent, or int64 (n,) class numbers.
        columns: numbers of classes.
        difficult: of several labels an image, ``"negative"`` (train_svm_kfold.py: everything that is
            not 1 becomes -1) or ``"drop"`` (svm_helper.get_cls_feats_labels, for low-shot: 0 stays).
            Single labels are one against the rest.
    """
    chosen = np.asarray(columns, np.int64)
    if labels.ndim == 1:
        return np.where(labels[:, None] == chosen, 1, -1).astype(np.int8)
    y = labels[:, chosen]
    return np.where(y == 1, 1, -1).astype(np.int8) if difficult == "negative" else y
