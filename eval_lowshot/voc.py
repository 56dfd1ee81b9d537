"""VOC 2007 as a multi-label classification set: images and a label per image and class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, check_config
from siambench.data.images import check_images, dataset_name
from siambench.data.voc import class_names, split_ids, voc_folder
from siambench.errors import UserError
from siambench.files import digest_of, existing
from siambench.record import DatasetInfo

TRAIN, TEST = "trainval", "test"


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        paths: one per image, in the order of the split's list.
        labels: (images, classes) int8 as in VOC's files: 1 present, 0 only as difficult, -1 absent.
    """

    paths: list[Path]
    labels: np.ndarray


@dataclass(frozen=True)
class VocClassification:
    """Both splits; what ``open_data`` returns.

    Attributes:
        classes: names, alphabetical.
        train, test: trainval and test.
        info: name, fingerprint and counts for the record.
    """

    classes: list[str]
    train: Split
    test: Split
    info: DatasetInfo


def open_data(config: SvmConfig) -> VocClassification:
    """Read VOC 2007's lists and check everything that the protocol needs.

    Raises:
        UserError: a file is absent or malformed, an image cannot be read, the splits differ in their
            classes, a class is absent from test, or a class has too few images for the protocol.
    """
    check_config(config)
    folder = voc_folder(config.data, "2007")
    classes = class_names(folder, TRAIN)
    if (of_test := class_names(folder, TEST)) != classes:
        raise UserError(
            f"{folder}/ImageSets/Main: {TRAIN} has the classes {', '.join(classes)} and {TEST} has "
            f"{', '.join(of_test)}; they must be the same"
        )
    splits = {name: _read_split(folder, name, classes) for name in (TRAIN, TEST)}
    counts = {name: len(split.paths) for name, split in splits.items()}
    good = {name: check_images(s.paths, config.skip_bad) for name, s in splits.items()}
    splits = {name: _keep(split, good[name]) for name, split in splits.items()}
    used = {name: len(split.paths) for name, split in splits.items()}
    for column, name in enumerate(classes):
        _check_class(name, splits[TRAIN].labels[:, column], splits[TEST].labels[:, column], config)
    if config.mode == "lowshot":
        _check_shots(classes, splits[TRAIN].labels, config)
    info = DatasetInfo(
        name=dataset_name(folder, used),
        fingerprint=digest_of({name: _rows(split) for name, split in splits.items()}),
        counts={
            **used,
            "classes": len(classes),
            "skipped": sum(counts.values()) - sum(used.values()),
        },
    )
    return VocClassification(classes, splits[TRAIN], splits[TEST], info)


def training_labels(labels: np.ndarray, difficult: str) -> np.ndarray:
    """VOC's labels of one class as the SVM's: 1, -1, and 0 for images that are left out.

    Args:
        labels: (n,) of 1, 0 (difficult) and -1.
        difficult: ``"negative"`` (train_svm_kfold.py: everything that is not 1 becomes -1) or
            ``"drop"`` (svm_helper.get_cls_feats_labels, for low-shot).
    """
    return np.where(labels == 1, 1, -1) if difficult == "negative" else labels.astype(int)


def _read_split(folder: Path, split: str, classes: Sequence[str]) -> Split:
    ids = split_ids(folder, split)
    columns = [
        _read_labels(folder / "ImageSets" / "Main" / f"{name}_{split}.txt", ids) for name in classes
    ]
    return Split(
        [folder / "JPEGImages" / f"{image}.jpg" for image in ids], np.stack(columns, axis=1)
    )


def _read_labels(path: Path, ids: Sequence[str]) -> np.ndarray:
    """The labels of ``ids`` in a VOC list of ``ID LABEL`` lines."""
    found: dict[str, int] = {}
    lines = existing(path, "VOC class list").read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and (len(words) != 2 or words[1] not in {"-1", "0", "1"}):
            raise UserError(
                f"{path}, line {number}: {line!r} is not `IMAGE -1`, `IMAGE 0` or `IMAGE 1`"
            )
        if words:
            found[words[0]] = int(words[1])
    missing = [image for image in ids if image not in found]
    if missing:
        raise UserError(
            f"{path} has no label for {missing[0]} ({len(missing)} of {len(ids)} missing); unpack "
            "VOC whole"
        )
    return np.array([found[image] for image in ids], dtype=np.int8)


def _keep(split: Split, good: Sequence[bool]) -> Split:
    paths = [path for path, ok in zip(split.paths, good, strict=True) if ok]
    return replace(split, paths=paths, labels=split.labels[np.array(good, dtype=bool)])


def _rows(split: Split) -> list[list[object]]:
    return [
        [path.name, path.stat().st_size, labels]
        for path, labels in zip(split.paths, split.labels.tolist(), strict=True)
    ]


def _check_class(name: str, train: np.ndarray, test: np.ndarray, config: SvmConfig) -> None:
    """Refuse a class that test cannot measure or that full training cannot cross-validate."""
    if not (test == 1).any() or not (test == -1).any():
        lacking = "negative" if (test == 1).any() else "positive"
        raise UserError(
            f"class {name} has no {lacking} image in {TEST}, so it has no average precision; remove "
            f"its ImageSets/Main/{name}_*.txt files or use a larger test split"
        )
    positives, negatives = _counts(train, config)
    if config.mode == "full" and min(positives, negatives) < FOLDS:
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
