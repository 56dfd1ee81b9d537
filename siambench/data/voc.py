"""The VOCdevkit layout: split lists, class names, and VOC 2007 as a multi-label classification set.

Annotations are the evaluations' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from siambench.data.images import dataset_name, examine_images
from siambench.data.pictures import FileImages
from siambench.errors import UserError
from siambench.files import digest_of, existing
from siambench.record import DatasetInfo

TRAIN, TEST = "trainval", "test"


def voc_folder(devkit: str | Path, year: str) -> Path:
    """``devkit/VOC{year}``, where ``devkit`` may also be the folder that holds ``VOCdevkit``.

    Raises:
        UserError: there is no such folder.
    """
    devkit = Path(devkit)
    if (devkit / "VOCdevkit").is_dir():
        devkit = devkit / "VOCdevkit"
    return existing(
        devkit / f"VOC{year}",
        "VOC folder",
        folder=True,
        hint="point --data at the folder that holds VOCdevkit/VOC2007 (and VOC2012)",
    )


def split_ids(folder: Path, split: str, task: str = "Main") -> list[str]:
    """Image ids of ``ImageSets/{task}/{split}.txt``, in file order.

    Raises:
        UserError: the list is absent or empty.
    """
    path = existing(folder / "ImageSets" / task / f"{split}.txt", "VOC split list")
    ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{path} is empty")
    return ids


def class_names(folder: Path, split: str) -> list[str]:
    """The classes, from the files ``ImageSets/Main/CLASS_{split}.txt`` (alphabetical, as officially).

    Raises:
        UserError: there are none.
    """
    suffix = f"_{split}.txt"
    names = sorted(
        p.name[: -len(suffix)] for p in (folder / "ImageSets" / "Main").glob(f"*{suffix}")
    )
    if not names:
        lists = folder / "ImageSets" / "Main"
        splits = sorted(p.stem for p in lists.glob("*.txt") if "_" not in p.stem)
        raise UserError(
            f"{lists} has no CLASS{suffix} files; "
            + (f"its splits are {', '.join(splits)}" if splits else "unpack VOC whole")
        )
    return names


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        images: the checked pictures, in the order of the split's list.
        labels: (images, classes) int8 as in VOC's files: 1 present, 0 only as difficult, -1 absent.
    """

    images: FileImages
    labels: np.ndarray

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [Path(self.images.path(index)) for index in range(len(self.images))]


@dataclass(frozen=True)
class VocClassification:
    """Both splits of VOC 2007.

    Attributes:
        classes: names, alphabetical.
        train, test: trainval and test.
        info: name, fingerprint and counts for the record.
    """

    classes: list[str]
    train: Split
    test: Split
    info: DatasetInfo


def read_voc_classification(
    devkit: str | Path, skip_bad: bool, lacking: Literal["refuse", "keep"] = "refuse"
) -> VocClassification:
    """Read VOC 2007's lists of images and of labels per class.

    Raises:
        UserError: a file is absent or malformed, an image cannot be read, the splits differ in their
            classes, or a class is not to be measured, since test has none with it or none without
            (unless ``lacking`` is ``"keep"``).
    """
    folder = voc_folder(devkit, "2007")
    classes = class_names(folder, TRAIN)
    if (of_test := class_names(folder, TEST)) != classes:
        raise UserError(
            f"{folder}/ImageSets/Main: {TRAIN} has the classes {', '.join(classes)} and {TEST} has "
            f"{', '.join(of_test)}; they must be the same"
        )
    listed = {name: _labels(folder, name, classes) for name in (TRAIN, TEST)}
    splits = {name: _read_split(folder, labels, skip_bad) for name, labels in listed.items()}
    for name, test in zip(classes, splits[TEST].labels.T, strict=True):
        if lacking == "refuse" and not ((test == 1).any() and (test == -1).any()):
            sign = "negative" if (test == 1).any() else "positive"
            raise UserError(
                f"class {name} has no {sign} image in {TEST}, so it has no average precision; "
                f"remove its ImageSets/Main/{name}_*.txt files or use a larger test split"
            )
    used = {name: len(split.images) for name, split in splits.items()}
    skipped = sum(len(labels) for labels in listed.values()) - sum(used.values())
    info = DatasetInfo(
        name=dataset_name(folder, used),
        fingerprint=digest_of({name: _rows(split) for name, split in splits.items()}),
        counts={**used, "classes": len(classes), "skipped": skipped},
    )
    return VocClassification(classes, splits[TRAIN], splits[TEST], info)


def _labels(folder: Path, split: str, classes: Sequence[str]) -> dict[str, list[int]]:
    """The labels of all classes for each image id of a split, in the list's order."""
    ids = split_ids(folder, split)
    columns = [
        _read_labels(folder / "ImageSets" / "Main" / f"{name}_{split}.txt", ids) for name in classes
    ]
    return dict(zip(ids, map(list, zip(*columns, strict=True)), strict=True))


def _read_labels(path: Path, ids: Sequence[str]) -> list[int]:
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
    return [found[image] for image in ids]


def _read_split(folder: Path, labels: dict[str, list[int]], skip_bad: bool) -> Split:
    """The split's readable images."""
    paths = [f"JPEGImages/{image}.jpg" for image in labels]
    good, facts = examine_images([folder / path for path in paths], skip_bad)
    kept = np.flatnonzero(good)
    images = FileImages(folder, [paths[i] for i in kept.tolist()], facts[kept])
    return Split(images, np.array(list(labels.values()), dtype=np.int8)[kept])


def _rows(split: Split) -> list[list[object]]:
    columns = (split.paths, split.images.facts().size.tolist(), split.labels.tolist())
    return [[path.name, size, labels] for path, size, labels in zip(*columns, strict=True)]
