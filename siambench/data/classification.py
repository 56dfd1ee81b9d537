"""Pictures with classes, of whatever layout a data set comes in, checked before any work."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from siambench.data.images import (
    EXTENSIONS,
    ImageList,
    class_folders,
    describe,
    read_image_folder,
)
from siambench.data.json_lists import find_json_lists
from siambench.data.multilabel_csv import MultiLabelList, find_tables, has_header, read_tables
from siambench.data.pictures import FileImages, Images, shared
from siambench.data.text_lists import Lists, find_text_lists
from siambench.data.torchvision_sets import ArrayList, open_torchvision
from siambench.data.voc import TEST, TRAIN, read_voc_classification
from siambench.errors import UserError
from siambench.files import existing
from siambench.progress import say
from siambench.record import DatasetInfo

__all__ = ["Classification", "Images", "Split", "open_classification"]

_TEST_FOLDERS = ("val", "valid", "validation", "test")  # the first that is there
_LAYOUTS = (
    "train/CLASS/* and val/CLASS/* (or test/); CLASS/*; train20YY.json and val20YY.json; train.txt and "
    "val.txt (or test.txt) of PATH LABEL lines; train_places205.csv and val_places205.csv; train.csv and "
    "val.csv (or test.csv) of several labels an image; VOCdevkit/VOC2007; or name torchvision:NAME:FOLDER"
)


@dataclass(frozen=True)
class Split:
    """Pictures with labels.

    Attributes:
        name: ``"train"``, ``"val"``, ``"test"`` or ``"trainval"``.
        images: the pictures.
        labels: int64 (n,) from 0; or, multi-label, int8 (n, classes) of 1 present, 0 left out (VOC's
            difficult, a table's empty cells) and -1 absent.
    """

    name: str
    images: Images
    labels: np.ndarray


@dataclass(frozen=True)
class Classification:
    """A data set for the linear probe and kNN.

    Attributes:
        classes: names; labels index into them.
        train: what is learnt from.
        test: what is reported on.
        info: name, fingerprint and counts for the record.
        same: test is train itself, so that kNN leaves each image out of its own neighbours.
    """

    classes: list[str]
    train: Split
    test: Split
    info: DatasetInfo
    same: bool = False

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several classes."""
        return self.train.labels.ndim == 2


def open_classification(
    data: str,
    *,
    skip_bad: bool = False,
    download: bool = False,
    flat: Literal["divide", "same"] = "divide",
    lacking: Literal["refuse", "keep"] = "refuse",
) -> Classification:
    """Open a data set, of the layout that is found, and check it.

    In this order: ``torchvision:NAME[:FOLDER]``, tables of several labels an image, ImageNet's
    folders, iNaturalist's JSON lists, text lists (Places205's too), VOC 2007, and a folder of class
    folders without splits.

    Args:
        data: the folder, or ``torchvision:NAME`` with the folder it lies in (by default ``data``).
        skip_bad: leave out unreadable images and count them, instead of refusing.
        download: let torchvision fetch the data set if it is not there.
        flat: of a folder without splits, ``"divide"`` makes a fifth of each class the test split,
            drawn with a fixed seed from the sorted list; ``"same"`` trains and tests on all of it.
        lacking: whether classes without a training image, or VOC's that test has none with or none
            without, are refused, or kept for the caller to check.

    Raises:
        UserError: no layout is recognised, files or labels are wrong, an image cannot be read, there
            are fewer than two classes, a class has no training image, a split has a class that
            train lacks, or a class of VOC has no average precision.

    Example:
        >>> from siambench.data.digit_scenes import DigitScenesConfig, make
        >>> import tempfile
        >>> root = make(DigitScenesConfig(out=tempfile.mkdtemp() + "/scenes", images=20, size=32))
        >>> found = open_classification(f"{root}/imagenet")
        >>> found.test.name, found.classes[:3], found.multilabel
        ('val', ['eight', 'five', 'four'], False)
    """
    if data.startswith("torchvision:"):
        kind, found = "torchvision's data set", _torchvision(data, skip_bad, download)
    else:
        root = existing(data, "data folder", folder=True, hint="or name torchvision:NAME:FOLDER")
        tables = find_tables(root)
        labelled = bool(tables) and has_header(tables["train"])
        if labelled and len(tables) == 2:
            kind, found = "tables", _described(root, read_tables(root, tables, skip_bad))
        elif lists := _image_folders(root, skip_bad):
            kind, found = "image folders", _of_lists(root, lists, skip_bad)
        elif lists := find_json_lists(root):
            kind, found = "iNaturalist's lists", _of_lists(root, lists, skip_bad)
        elif lists := find_text_lists(root):
            kind, found = "text lists", _of_lists(root, lists, skip_bad)
        elif any((root / place).is_dir() for place in ("VOCdevkit/VOC2007", "VOC2007")):
            kind, found = "VOC 2007", _voc(root, skip_bad, lacking)
        elif labelled or len(tables) == 2:  # and refused: one alone, or another header
            kind, found = "tables", _described(root, read_tables(root, tables, skip_bad))
        else:
            kind, found = "one folder of classes", _flat(root, skip_bad, flat)
    _check(found, data, lacking)
    found = found if found.same else _compare(found)
    say(_told(found, f"{data}, {kind}"))
    return found


def _told(found: Classification, data: str) -> str:
    """What was opened, in a line."""
    kind = "classes, several labels an image" if found.multilabel else "classes"
    counts = f"{len(found.train.labels):,} {found.train.name}"
    counts += "" if found.same else f" and {len(found.test.labels):,} {found.test.name}"
    skipped = found.info.counts.get("skipped", 0)
    left_out = f"; {skipped:,} images that cannot be decoded are left out" if skipped else ""
    return f"data {data}: {counts} images, {len(found.classes):,} {kind}{left_out}"


def _image_folders(root: Path, skip_bad: bool) -> Lists | None:
    """ImageNet's layout, checked; None where ``root/train`` has no class folders."""
    train = root / "train"
    if not train.is_dir() or not class_folders(train):
        return None
    names = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if not names:
        raise UserError(
            f"{root} has train/ but none of {', '.join(_TEST_FOLDERS)}; expected val/CLASS/IMAGE"
        )
    images = read_image_folder(root, "train", skip_bad=skip_bad)
    other = read_image_folder(root, names[0], skip_bad=skip_bad, classes=images.classes)
    return {"train": images, names[0]: other}


def _of_lists(root: Path, lists: Lists, skip_bad: bool) -> Classification:
    """The first list to train on, the second to test on; they are checked if they are not yet."""
    lists = {s: i if i.facts is not None else i.checked(skip_bad) for s, i in lists.items()}
    return _described(root, lists)


def _described(
    root: Path, lists: Mapping[str, ImageList | ArrayList | MultiLabelList]
) -> Classification:
    """Checked lists, train first, as splits."""
    splits = []
    for name, listed in lists.items():
        images = FileImages.of(listed) if isinstance(listed, ImageList) else listed.images
        splits.append(Split(name, images, np.asarray(listed.labels)))
    classes = next(iter(lists.values())).classes
    return Classification(classes, splits[0], splits[-1], describe(root, lists))


def _flat(root: Path, skip_bad: bool, flat: Literal["divide", "same"]) -> Classification:
    """A folder of class folders."""
    folders = sorted(class_folders(root))
    splits_only = all(folder.name in {"train", *_TEST_FOLDERS} for folder in folders)
    files = (path for folder in folders for path in folder.rglob("*"))
    if splits_only or not any(path.suffix.lower() in EXTENSIONS for path in files):
        raise UserError(f"{root} is no data set of a known layout; looked for {_LAYOUTS}")
    if (root / "annotations").is_dir():
        raise UserError(
            f"{root} looks like COCO, whose images have no classes of their own; see `siambench detect`"
        )
    if within := [folder for folder in folders if (folder / "train").is_dir()]:
        raise UserError(f"{root} holds data sets, such as {within[0]}; name one of them")
    whole = read_image_folder(root, "", skip_bad=skip_bad)
    if flat == "same":
        return replace(_described(root, {"train": whole}), same=True)
    return _divided(root, whole)


def _divided(root: Path, whole: ImageList) -> Classification:
    """A fifth of each class becomes the test split; a class of one image stays in train."""
    rng = np.random.default_rng(0)
    labels = np.array(whole.labels)
    held = np.zeros(len(labels), bool)
    for label in range(len(whole.classes)):
        members = np.flatnonzero(labels == label)
        count = min(max(1, len(members) // 5), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    if not held.any():
        raise UserError(f"{root}: every class has a single image; nothing is left to test on")
    lists = {
        "train": whole[np.flatnonzero(~held)],
        "test": replace(whole[np.flatnonzero(held)], skipped=0),
    }
    say(
        f"{root} has no splits: a fifth of each class, drawn with a fixed seed, is the test split "
        f"({len(lists['train'])} train, {len(lists['test'])} test)"
    )
    return _described(root, lists)


def _voc(root: Path, skip_bad: bool, lacking: Literal["refuse", "keep"]) -> Classification:
    voc = read_voc_classification(root, skip_bad, lacking)
    train = Split(TRAIN, voc.train.images, voc.train.labels)
    test = Split(TEST, voc.test.images, voc.test.labels)
    return Classification(voc.classes, train, test, voc.info)


def _torchvision(data: str, skip_bad: bool, download: bool) -> Classification:
    _, name, *place = data.split(":", 2)
    root = Path(place[0] if place else "data").expanduser()
    lists: dict[str, ImageList | ArrayList] = {
        split: listed.checked(skip_bad) if isinstance(listed, ImageList) else listed
        for split, listed in open_torchvision(name, root, download).items()
    }
    whole = lists.get("all")
    found = _divided(root, whole) if isinstance(whole, ImageList) else _described(root, lists)
    return replace(found, info=replace(found.info, name=name))


def _check(found: Classification, data: str, lacking: Literal["refuse", "keep"]) -> None:
    """Refuse classes that cannot be recorded, or not be learnt."""
    if len(found.classes) < 2:
        raise UserError(f"{data} has the one class {found.classes[0]}; at least two are needed")
    for name in found.classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{data}: class {os.fsencode(name)!r} is not UTF-8, which records must be; rename it"
            ) from None
    if lacking == "keep":
        return
    count = len(found.classes)
    if found.multilabel:
        counts = [(split.labels == 1).sum(0) for split in (found.train, found.test)]
    else:
        counts = [np.bincount(s.labels, minlength=count) for s in (found.train, found.test)]
    for label in np.flatnonzero(counts[0] == 0).tolist():
        also = f" but {counts[1][label]} in {found.test.name}" if counts[1][label] else ""
        raise UserError(
            f"{data}: class {found.classes[label]} has no image in {found.train.name}{also}; add some "
            "or remove the class"
        )


def _compare(found: Classification) -> Classification:
    """Say which images the splits share; ``same`` if they are one and the same set."""
    train, test = found.train, found.test
    pairs = shared(train.images, test.images)
    if not len(pairs):
        return found
    if len(pairs) == len(test.images) and _identical(train, test):
        say(
            f"{train.name} and {test.name} are the same {len(pairs)} images: kNN leaves each out of "
            "its own neighbours, and a linear probe is scored on what it was trained on"
        )
        return replace(found, test=replace(test, images=train.images), same=True)
    one, two = pairs[0].tolist()
    say(
        f"warning: {len(pairs)} of {len(test.images)} images of {test.name} are in {train.name} too "
        f"and make the score too good, e.g. {test.images.name(two)} = {train.images.name(one)}"
    )
    return found


def _identical(train: Split, test: Split) -> bool:
    """Whether every picture, its label and its path below the split are those of the other split."""

    def names(split: Split) -> list[str]:
        every = (split.images.name(index) for index in range(len(split.images)))
        return [name.removeprefix(f"{split.name}/") for name in every]

    return (
        np.array_equal(train.labels, test.labels)
        and np.array_equal(train.images.marks(), test.images.marks())
        and names(train) == names(test)
    )
