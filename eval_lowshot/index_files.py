"""The index files of FAIR's and VISSL's low-shot scripts: matrices of targets, and lists of paths."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from eval_lowshot.located import locate, rows_of
from siambench.data.classification import Classification
from siambench.errors import UserError, first_line

Key = tuple[int, int]  # k, and the sample's number from 0
Part = dict[int, tuple[np.ndarray, np.ndarray]]  # of each class: rows of train, and 1 or -1
_SIGNS = {1: "positive", 0: "left out", -1: "negative"}
_NO_TARGETS = ("train_images", "train_labels", "test_")  # what the scripts put beside the matrices


def read_matrices(
    folder: Path, found: Classification, truth: np.ndarray, wanted: Sequence[Key]
) -> Iterator[tuple[str, Part]]:
    """FAIR's and VISSL's matrices of targets."""
    images, split = found.train.images, found.train.name
    files = _files(folder, "", wanted)
    names = [os.path.splitext(images.name(row))[0] for row in range(len(images))]
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    for path in files:
        given = _load(path)
        if given.shape != truth.shape:
            skipped = " (--skip_bad left some out)" if found.info.counts.get("skipped") else ""
            raise UserError(
                f"{path} is of shape {given.shape}; one row for each of {truth.shape[0]} images of {split}"
                f"{skipped} and one column for each of {truth.shape[1]} classes are needed"
            )
        if given.dtype.kind not in "iuf" or not np.isin(given, (-1, 0, 1)).all():
            raise UserError(
                f"{path} has values other than 1 (positive), 0 (negative) and -1 (not used); is it a file "
                "of targets?"
            )
        signs = np.array([-1, 1, 0])[given.astype(int)]  # of 0, 1, -1
        wrong = np.argwhere((signs != 0) & (signs != truth[order]))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise UserError(
                f"{path}: {len(wrong):,} labels are not the data's, e.g. row {row}, which should be "
                f"{images.name(order[row])}, is {_SIGNS[signs[row, column]]} for {found.classes[column]} "
                f"there and {_SIGNS[truth[order[row], column]]} in the data; rows must be the images of "
                f"{split} sorted by name, columns {', '.join(found.classes[:3])}, ..."
            )
        part = {}
        for column in range(truth.shape[1]):
            used = np.flatnonzero(signs[:, column])
            used = used[np.argsort(order[used])]
            part[column] = order[used], signs[used, column].astype(np.int8)
        yield str(path), part


def read_lists(
    folder: Path, found: Classification, wanted: Sequence[Key]
) -> Iterator[tuple[str, Part]]:
    """FAIR's and VISSL's lists of image paths, and of class numbers."""
    pairs = [_files(folder, f"train_{what}", wanted) for what in ("images", "labels")]
    lists: list[tuple[Path, list[str], np.ndarray]] = []
    for of_images, of_labels in zip(*pairs, strict=True):
        images, labels = _load(of_images).reshape(-1), _load(of_labels).reshape(-1)
        if (
            images.dtype.kind not in "US"
            or labels.dtype.kind not in "iuf"
            or len(images) != len(labels)
        ):
            raise UserError(
                f"{of_images} and {of_labels.name} must be as many paths as class numbers; they are "
                f"{len(images)} of type {images.dtype} and {len(labels)} of type {labels.dtype}"
            )
        lists.append((of_images, [os.fsdecode(path) for path in images.tolist()], labels))
    candidates = locate((path for _, paths, _ in lists for path in paths), found.train)
    for file, paths, labels in lists:
        rows = rows_of(paths, candidates, found.train, file)
        wrong = np.flatnonzero(found.train.labels[rows] != labels)
        if len(wrong):
            first = wrong[0]
            raise UserError(
                f"{file}: {len(wrong):,} labels are not the data's, e.g. {paths[first]} has {labels[first]} "
                f"there and {found.train.labels[rows[first]]} in the data; number the classes as the data does"
            )
        yield str(file), by_class(rows, found.train.labels)


def by_class(rows: np.ndarray, labels: np.ndarray) -> Part:
    """Rows of single labels, sorted, as the positives of their classes."""
    rows = np.sort(rows)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    which, starts = np.unique(labels[rows], return_index=True)
    parts = np.split(rows, starts[1:])
    return {
        label: (part, np.ones(len(part), np.int8))
        for label, part in zip(which.tolist(), parts, strict=False)
    }


def _files(folder: Path, stem: str, wanted: Sequence[Key]) -> list[Path]:
    """The one file of each k and sample: ``STEM_sample{1...}_k{K}.npy``, or of any stem but these."""
    found: dict[Key, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        named = re.fullmatch(r"(.+)_sample(\d+)_k(\d+)\.npy", path.name)
        if named and (named[1] == stem if stem else not named[1].startswith(_NO_TARGETS)):
            found.setdefault((int(named[3]), int(named[2])), []).append(path)
    for k, number in wanted:
        files = found.get((k, number + 1), [])
        if not files:
            raise missing(folder, f"{stem or '*'}_sample{number + 1}_k{k}.npy", set(found))
        if len(files) > 1:
            names = " and ".join(path.name for path in files[:2])
            raise UserError(f"{folder} has both {names}; leave the samples of one layer there")
    return [found[k, number + 1][0] for k, number in wanted]


def missing(where: Path, what: str, there: set[Key]) -> UserError:
    """The error that samples are not there, with those (k, count from 1) that are."""
    if not there:
        return UserError(f"--samples_dir: {where} has no {what}, nor that of another k or sample")
    ks = ", ".join(str(k) for k in sorted({k for k, _ in there}))
    count = max(number for _, number in there)
    return UserError(
        f"--samples_dir: {where} has no {what}; it has k = {ks} and at most {count} samples: ask for these "
        "by --k and --samples"
    )


def _load(path: Path) -> np.ndarray:
    """An array, never unpickled."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile) as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"{path} holds Python objects, which are not loaded; if you trust it, write text instead: "
                "np.save(FILE, np.load(FILE, allow_pickle=True).astype(str))"
            ) from None
        raise UserError(
            f"{path} is not a NumPy array ({first_line(error)}); make it again"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is not a NumPy array but an archive; make it again")
    return array
