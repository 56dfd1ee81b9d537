"""A data set for the SVMs: what their protocols need of it, checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, check_config
from eval_lowshot.given import content_digest, read_samples
from eval_lowshot.samples import Sample
from eval_lowshot.targets import targets
from siambench.data.classification import Classification, Split, open_classification
from siambench.data.pictures import ChosenImages
from siambench.errors import UserError
from siambench.files import digest_of
from siambench.progress import say
from siambench.record import DatasetInfo

__all__ = ["Split", "SvmData", "open_data", "targets"]


@dataclass(frozen=True)
class SvmData:
    """A data set of which every class can be trained and measured.

    Attributes:
        classes: names of those that are measured, in the data's order.
        train, test: labels are int8 (n, classes) of 1 present, 0 left out, -1 absent, or int64 (n,)
            numbers into ``classes``.
        info: name, fingerprint (over given samples too) and counts for the record.
        left_out: class name to why it is not measured (only under ``--skip_classes``).
        numbers: the place of each class among those of the data, left out ones counted: what draws are
            seeded with; empty where it is its place in ``classes``.
        given: the samples of ``--samples_dir``.
    """

    classes: list[str]
    train: Split
    test: Split
    info: DatasetInfo
    left_out: dict[str, str] = field(default_factory=dict)
    numbers: Sequence[int] = ()
    given: Sequence[Sample] = ()

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several classes."""
        return self.train.labels.ndim == 2

    def negatives_per_positive(self, config: SvmConfig) -> int:
        """As configured; by default classes - 1 (FAIR's create_voc_low_shot_samples.py), all counted."""
        return config.negatives_per_positive or len(self.classes) + len(self.left_out) - 1


def open_data(config: SvmConfig) -> SvmData:
    """Open a data set of any layout, check it, and leave out or refuse what cannot be measured.

    Raises:
        UserError: a setting is wrong; as :func:`open_classification`; train and test are the same
            images; given samples are not of this data; or a class has too few images (without
            ``--skip_classes``, or so that fewer than two are left).
    """
    check_config(config)
    found = open_classification(
        config.data, skip_bad=config.skip_bad, download=config.download, lacking="keep"
    )
    if found.same:
        raise UserError(
            f"{config.data}: train and test are the same images, on which an SVM's score says nothing; "
            "name a data set with a test split of its own"
        )
    lacking = _lacking(found, config)
    if lacking and not config.skip_classes:
        raise UserError(
            f"{_worst(found, config, lacking)}, or leave such classes out by --skip_classes"
        )
    kept = np.setdiff1d(np.arange(len(found.classes)), list(lacking))
    left_out = {found.classes[number]: why for number, why in lacking.items()}
    if left_out:
        name, why = next(iter(left_out.items()))
        said = f"{len(left_out):,} of {len(found.classes):,} classes, e.g. {name}, which {why}"
        if len(kept) < 2:
            raise UserError(
                f"{config.data}: --skip_classes would leave out {said}; two at least must be left: use "
                "more images, or a smaller --k"
            )
        say(f"left out under --skip_classes: {said}")
    train, test = _kept(found.train, kept, found), _kept(found.test, kept, found)
    given = read_samples(found, config, kept) if config.samples_dir else []
    info = _info(found, train, test, len(kept), given)
    classes = [found.classes[number] for number in kept.tolist()]
    return SvmData(classes, train, test, info, left_out, kept.tolist(), given)


def _counts(
    labels: np.ndarray, classes: int, difficult: str = "drop"
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative images of every class."""
    if labels.ndim == 1:
        positives = np.bincount(labels, minlength=classes)
        return positives, len(labels) - positives
    positives, absent = (labels == 1).sum(0), (labels == -1).sum(0)
    return positives, len(labels) - positives if difficult == "negative" else absent


def _lacking(found: Classification, config: SvmConfig) -> dict[int, str]:
    """Numbers of the classes that cannot be trained or measured, and why not."""
    train, test = found.train, found.test
    positives, negatives = _counts(train.labels, len(found.classes), str(config.difficult_train))
    shown, hidden = _counts(test.labels, len(found.classes))
    few = _fits(found, config) < _needed(config)
    why = {}
    for number in np.flatnonzero(few | (shown == 0) | (hidden == 0)).tolist():
        if few[number]:
            others = f" positive and {negatives[number]} negative" if found.multilabel else ""
            why[number] = f"has {positives[number]}{others} images in {train.name}"
        else:
            sign = "positive" if shown[number] == 0 else "negative"
            why[number] = f"has no {sign} image in {test.name}, so it has no average precision"
    return why


def _needed(config: SvmConfig) -> int:
    """What :func:`_fits` must be."""
    return FOLDS if config.mode == "full" else max(config.k)


def _fits(found: Classification, config: SvmConfig) -> np.ndarray:
    """Of every class the most folds, or the largest k, that its training images allow.

    With single labels the other classes' images are negatives enough, as two classes are kept at
    least; given samples have a number of negatives of their own.
    """
    labels, difficult = found.train.labels, str(config.difficult_train)
    positives, negatives = _counts(labels, len(found.classes), difficult)
    if not found.multilabel:
        return positives
    if config.samples_dir:
        return np.where(negatives > 0, positives, 0)
    ratio = 1 if config.mode == "full" else _ratio(found, config)
    return np.minimum(positives, negatives // ratio)


def _ratio(found: Classification, config: SvmConfig) -> int:
    return config.negatives_per_positive or len(found.classes) - 1


def _worst(found: Classification, config: SvmConfig, lacking: dict[int, str]) -> str:
    """The line on the class that lacks most, but for its end."""
    fits, needed = _fits(found, config), _needed(config)
    number = min(lacking, key=lambda n: fits[n])
    line = f"class {found.classes[number]} {lacking[number]}"
    line += f" ({len(lacking) - 1} more such classes)" if len(lacking) > 1 else ""
    if fits[number] >= needed:
        return f"{line}: use a larger test split, remove the class"
    if config.mode == "full":
        each = " of each" if found.multilabel else ""
        return (
            f"{line}; {FOLDS}-fold cross-validation needs {FOLDS}{each}: use more images, remove the "
            "class"
        )
    smaller = f"keep --k to at most {fits[number]}" if fits[number] else "use more images"
    if not found.multilabel or config.samples_dir:
        return f"{line}; k = {needed} needs {needed}: {smaller}"
    ratio = _ratio(found, config)
    return (
        f"{line}; k = {needed} needs {needed} and {needed * ratio} ({ratio} per positive): {smaller}, "
        "lower --negatives_per_positive"
    )


def _kept(split: Split, kept: np.ndarray, found: Classification) -> Split:
    """A split of the kept classes alone."""
    if len(kept) == len(found.classes):
        return split
    if found.multilabel:
        return replace(split, labels=split.labels[:, kept])
    place = np.full(len(found.classes), -1)
    place[kept] = np.arange(len(kept))
    labels = place[split.labels]
    rows = np.flatnonzero(labels >= 0)
    return replace(split, images=ChosenImages(split.images, rows), labels=labels[rows])


def _info(
    found: Classification, train: Split, test: Split, classes: int, given: Sequence[Sample]
) -> DatasetInfo:
    """The data set's, with what is left of it and what is given."""
    counts = {**found.info.counts, train.name: len(train.labels), test.name: len(test.labels)}
    if classes < len(found.classes):
        counts |= {"classes": classes, "classes_left_out": len(found.classes) - classes}
    fingerprint = found.info.fingerprint
    if given:
        fingerprint = digest_of([fingerprint, content_digest(given)])
    return replace(found.info, fingerprint=fingerprint, counts=counts)
