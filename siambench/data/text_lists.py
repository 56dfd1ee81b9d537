"""Data sets whose splits are text files of ``PATH LABEL`` lines; Places205's among them."""

import os
from collections.abc import Iterator
from pathlib import Path

from siambench.data.images import ImageList
from siambench.errors import UserError, printable

# Where Places205's archives unpack to: trainvalsplit_places205.tar.gz holds the lists, the images of
# imagesPlaces205_resize.tar.gz lie as deep as this (mmselfsup's places205.py names both).
_PLACES_LISTS = ("", "trainvalsplit_places205")
_PLACES_IMAGES = ("images256", "data/vision/torralba/deeplearning/images256", "")

Lists = dict[str, ImageList]  # train and another split, by name


def find_text_lists(root: Path) -> Lists | None:
    """``train.txt`` and ``val.txt`` (else ``test.txt``), or Places205's lists; None without either.

    Lines are ``PATH LABEL``, PATH relative to ``root`` (Places205: to its image folder), where it
    may hold blanks, and LABEL from 0. Class names are the lines of ``classes.txt``; without it the
    folders of the training images, where every class has one of its own, else the labels.

    Raises:
        UserError: as :func:`read_text_list`; or a label has no name in ``classes.txt``.
    """
    for other in ("val", "test"):
        files = {split: root / f"{split}.txt" for split in ("train", other)}
        if all(path.is_file() for path in files.values()):
            return _named(root, {s: read_text_list(path, root) for s, path in files.items()})
    for folder in _PLACES_LISTS:
        files = {s: root / folder / f"{s}_places205.csv" for s in ("train", "val")}
        if all(path.is_file() for path in files.values()):
            images = next(root / place for place in _PLACES_IMAGES if (root / place).is_dir())
            return _named(root, {s: read_text_list(path, images) for s, path in files.items()})
    return None


def read_text_list(path: Path, root: Path) -> ImageList:
    """Images and labels of a list of ``PATH LABEL`` lines; ``classes`` is empty.

    Raises:
        UserError: a line is not of that form, its label is not an integer from 0, its path leaves
            the folder or has had another label; the line is named. Or the list is empty.
    """
    labels: dict[str, int] = {}
    rows: list[tuple[str, int]] = []
    for number, name, word in _lines(path):
        label = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else -1
        if label < 0:
            raise UserError(
                f"{path}, line {number}: label {word!r} is not an integer from 0; expected PATH LABEL"
            )
        check_inside(name, f"{path}, line {number}")
        if labels.setdefault(name, label) != label:
            raise UserError(
                f"{path}, line {number}: {name} has label {label} here and {labels[name]} before"
            )
        rows.append((name, label))
    if not rows:
        raise UserError(f"{path} is empty")
    return ImageList(root, [name for name, _ in rows], [label for _, label in rows], [])


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, path and label of each line that is not blank."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            words = line.strip().rsplit(None, 1)
            if len(words) == 1:
                raise UserError(
                    f"{path}, line {number}: {printable(words[0])!r} is not PATH LABEL; write an "
                    "integer from 0 behind the path"
                )
            if words:
                yield number, words[0], words[1]


def check_inside(name: object, where: str) -> None:
    """Refuse a path of a list that leaves the data folder.

    Raises:
        UserError: it does; the line begins with ``where``.
    """
    try:
        usable = isinstance(name, str) and bool(os.fsencode(name)) and "\0" not in name
    except UnicodeEncodeError:
        usable = False
    if not isinstance(name, str) or not usable:
        raise UserError(f"{where}: {name!r} is not a path")
    if name[0] == "/" or (".." in name and ".." in name.split("/")):
        raise UserError(
            f"{where}: {name} is outside the data folder; paths must be relative and without .."
        )


def _named(root: Path, lists: Lists) -> Lists:
    """The lists with their class names."""
    train, other = lists.values()
    path = root / "classes.txt"
    if path.is_file():
        classes = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        classes = [name.strip() for name in classes if name.strip()]
        for split, images in lists.items():
            if max(images.labels) >= len(classes):
                index = images.labels.index(max(images.labels))
                raise UserError(
                    f"{split} list of {root}: {images.paths[index]} has label {images.labels[index]}, "
                    f"but {path} names {len(classes)} classes (labels 0 to {len(classes) - 1})"
                )
    else:
        count = max(*train.labels, *other.labels) + 1
        if lacking := set(range(min(count, len(train) + 1))) - set(train.labels):
            split, images = max(lists.items(), key=lambda item: max(item[1].labels))
            culprit = images.paths[images.labels.index(count - 1)]
            raise UserError(
                f"{root}: no image of the train list has label {min(lacking)}, but {culprit} of the "
                f"{split} list has {count - 1}; add some, or number the classes 0, 1, 2, ..."
            )
        classes = _folder_names(train, count) or [str(label) for label in range(count)]
    return {s: ImageList(i.root, i.paths, i.labels, classes) for s, i in lists.items()}


def _folder_names(train: ImageList, count: int) -> list[str]:
    """The folder of each class, without what all have in common; empty if they do not tell apart."""
    pairs = {(os.path.dirname(p), y) for p, y in zip(train.paths, train.labels, strict=True)}
    folders = {label: folder for folder, label in pairs}
    if len(pairs) != count or len(set(folders.values())) != count or "" in folders.values():
        return []
    common = os.path.commonpath(folders.values())
    return [os.path.relpath(folders[label], common or ".") for label in range(count)]
