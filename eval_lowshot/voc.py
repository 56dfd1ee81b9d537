"""VOC 2007 for the SVMs: what their protocol needs of its labels, and what they make of them."""

from collections.abc import Sequence

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, check_config
from siambench.data.voc import TEST, TRAIN, VocClassification, read_voc_classification
from siambench.errors import UserError

__all__ = ["TEST", "TRAIN", "VocClassification", "open_data", "training_labels"]


def open_data(config: SvmConfig) -> VocClassification:
    """Read VOC 2007's lists and check everything that the protocol needs.

    Raises:
        UserError: as :func:`siambench.data.voc.read_voc_classification`, or a class has too few
            images for the protocol.
    """
    check_config(config)
    data = read_voc_classification(config.data, config.skip_bad)
    if config.negatives_per_positive is None:
        config.negatives_per_positive = len(data.classes) - 1
    if config.mode == "full":
        for name, labels in zip(data.classes, data.train.labels.T, strict=True):
            _check_folds(name, labels, config)
    else:
        _check_shots(data.classes, data.train.labels, config)
    return data


def training_labels(labels: np.ndarray, difficult: str) -> np.ndarray:
    """VOC's labels of one class as the SVM's: 1, -1, and 0 for images that are left out.

    Args:
        labels: (n,) of 1, 0 (difficult) and -1.
        difficult: ``"negative"`` (train_svm_kfold.py: everything that is not 1 becomes -1) or
            ``"drop"`` (svm_helper.get_cls_feats_labels, for low-shot).
    """
    return np.where(labels == 1, 1, -1) if difficult == "negative" else labels.astype(int)


def _check_folds(name: str, labels: np.ndarray, config: SvmConfig) -> None:
    """Refuse a class that full training cannot cross-validate."""
    positives, negatives = _counts(labels, config)
    if min(positives, negatives) < FOLDS:
        raise UserError(
            f"class {name} has {positives} positive and {negatives} negative images in {TRAIN}; "
            f"{FOLDS}-fold cross-validation needs {FOLDS} of each: use more images, or remove its "
            f"ImageSets/Main/{name}_*.txt files"
        )


def _check_shots(classes: Sequence[str], labels: np.ndarray, config: SvmConfig) -> None:
    """Refuse a k that some class has too few images for; the line names the one with the fewest."""
    ratio, k = config.negatives_per_positive, max(config.k)
    counts = [_counts(column, config) for column in labels.T]
    fits = [min(positives, negatives // ratio) for positives, negatives in counts]
    worst = int(np.argmin(fits))
    if k > fits[worst]:
        positives, negatives = counts[worst]
        smaller = f"keep --k to at most {fits[worst]}" if fits[worst] else "use more images"
        raise UserError(
            f"class {classes[worst]} has {positives} positive and {negatives} negative images in "
            f"{TRAIN}; k = {k} needs {k} and {k * ratio} ({ratio} per positive): {smaller}, or lower "
            "--negatives_per_positive"
        )


def _counts(labels: np.ndarray, config: SvmConfig) -> tuple[int, int]:
    """Positive and negative images that training may use."""
    y = training_labels(labels, str(config.difficult_train))
    return int((y == 1).sum()), int((y == -1).sum())
