"""Data sets whose splits are tables (CSV): an image a line, and which classes it has."""

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from siambench.data.images import ImageList
from siambench.data.pictures import FileImages
from siambench.data.text_lists import check_inside
from siambench.errors import UserError, first_line, printable
from siambench.files import digest_of

# The first column, in any case: CheXpert's is Path, CelebA's image_id, others are common.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "filepath", "image_id", "image_name")
_OTHERS = ("val", "valid", "test")  # the first that is there; CheXpert's is valid.csv
_FORMS = "`image` and a column per class, or `image,labels`, separated by commas"
_UNKNOWN, _PRESENT, _ABSENT, _MINUS = range(4)
_CODES = {"": _UNKNOWN, "1": _PRESENT, "0": _ABSENT, "-1": _MINUS}
_CODES |= {f"{cell}.0": code for cell, code in _CODES.items() if cell}  # as pandas writes them
_LABELS = np.array([0, 1, -1, -1], np.int8)  # of the codes


@dataclass(frozen=True)
class MultiLabelList:
    """Checked images with any number of classes each; as :class:`siambench.data.images.ImageList`.

    Attributes:
        listed: the images; their labels there are 0.
        labels: int8 (n, classes) of 1 present, 0 not known, -1 absent.
    """

    listed: ImageList
    labels: np.ndarray

    @property
    def images(self) -> FileImages:
        """The pictures."""
        return FileImages.of(self.listed)

    @property
    def classes(self) -> list[str]:
        """Their names."""
        return self.listed.classes

    @property
    def skipped(self) -> int:
        """Images left out."""
        return self.listed.skipped

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """SHA-256 over the images' and over class names and labels."""
        names = "\0".join(self.classes).encode(errors="surrogateescape")
        labels = hashlib.sha256(names + self.labels.tobytes()).hexdigest()
        return digest_of([self.listed.fingerprint(), labels])


def find_tables(root: Path) -> dict[str, Path]:
    """``train.csv`` and the first of val.csv, valid.csv and test.csv, if they are there."""
    names = [name for name in ("train", *_OTHERS) if (root / f"{name}.csv").is_file()]
    return {name: root / f"{name}.csv" for name in names[:2]} if "train" in names else {}


def has_header(path: Path) -> bool:
    """Whether the first line is that of a table of several labels an image (not ``image,label``)."""
    try:
        return _is_header(next(_lines(path), (0, []))[1])
    except UserError:  # no CSV
        return False


def read_tables(root: Path, tables: dict[str, Path], skip_bad: bool) -> dict[str, MultiLabelList]:
    """Both tables with their images checked; the classes of the first are those of both.

    The first column names images, relative to ``root``. Either every other column is a class, with 1
    present, 0 absent and empty not known (-1 is absent too where no cell is 0, as in CelebA's); or the
    one other column, ``labels``, has the present classes' names, with ``;`` or ``|`` between them.

    Raises:
        UserError: there is one table only, a table is empty, its header or a cell is of neither form,
            an image leaves the folder or has other labels elsewhere, -1 stands beside 0 (CheXpert's
            "uncertain"), nothing is present or absent, the two differ in form or classes, or an image
            cannot be read.
    """
    train, *others = (_read(path) for path in tables.values())
    if not others:
        raise UserError(
            f"{train.path}: there is no table to test on; add val.csv, valid.csv or test.csv"
        )
    other = others[0]
    if bool(train.names) != bool(other.names):
        raise UserError(
            f"{train.path} and {other.path}: one has a column per class, the other `labels`; use one form"
        )
    if train.names:
        classes = sorted({name for names in train.names for name in names})
        if not classes:
            raise UserError(f"{train.path}: no image has a class; write their names under `labels`")
        labels = [_of_names(table, classes, train.path) for table in (train, other)]
    else:
        classes = train.columns
        labels = _of_columns(train, other)
    parts = zip(tables, (train, other), labels, strict=True)
    return {split: _checked(root, table, y, classes, skip_bad) for split, table, y in parts}


@dataclass(frozen=True)
class _Table:
    """What a file says: of every image the line, and either the codes of all columns or class names."""

    path: Path
    columns: list[str]
    images: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    codes: bytearray = field(default_factory=bytearray)
    names: list[list[str]] = field(default_factory=list)

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            for cells in rows:
                if cells:
                    yield rows.line_num, cells
        except csv.Error as error:
            raise UserError(
                f"{path}, line {rows.line_num}: not CSV ({first_line(error)}); mend the line"
            ) from None


def _is_header(cells: Sequence[str]) -> bool:
    names = [cell.strip().lower() for cell in cells]
    return len(names) > 1 and names[0] in IMAGE_COLUMNS and names[1:] != ["label"]


def _read(path: Path) -> _Table:
    rows = _lines(path)
    _, header = next(rows, (0, None))
    if header is None:
        raise UserError(f"{path} is empty; its first line is to be a header: {_FORMS}")
    if not _is_header(header):
        raise UserError(
            f"{path}: {printable(','.join(header))!r} is not the header of a table of labels, which is "
            f"{_FORMS}; with one label an image, write train.txt and val.txt of PATH LABEL lines"
        )
    columns = [name.strip() for name in header[1:]]
    named = [name.lower() for name in columns] == ["labels"]
    for number, name in enumerate(columns, start=2):
        if not name or columns.index(name) != number - 2:
            what = f"is named {name!r} as another is" if name else "has no name"
            raise UserError(f"{path}: column {number} {what}; every class needs a name of its own")
    table = _Table(path, columns)
    for line, (image, *cells) in rows:
        where = f"{path}, line {line}"
        if len(cells) != len(columns):
            raise UserError(f"{where}: {len(cells) + 1} cells, but the header has {len(header)}")
        check_inside(image, where)
        table.images.append(image)
        table.lines.append(line)
        if named:
            table.names.append(
                [name.strip() for name in re.split("[;|]", cells[0]) if name.strip()]
            )
        else:
            table.codes.extend(_codes(cells, columns, where))
    if not table.images:
        raise UserError(f"{path} has a header but no image")
    return table


def _codes(cells: Sequence[str], columns: Sequence[str], where: str) -> bytes:
    try:
        return bytes(map(_CODES.__getitem__, cells))
    except KeyError:
        name, cell = next((n, c) for n, c in zip(columns, cells, strict=True) if c not in _CODES)
        raise UserError(
            f"{where}: {name} is {printable(cell)!r}, not 1 (present), 0 (absent) or empty (not known); "
            "mend it, or remove the column if it is not a class"
        ) from None


def _of_names(table: _Table, classes: Sequence[str], train: Path) -> np.ndarray:
    """Labels where the present classes are listed."""
    column = {name: number for number, name in enumerate(classes)}
    labels = np.full((len(table.images), len(classes)), -1, np.int8)
    for row, names in enumerate(table.names):
        for name in names:
            if name not in column:
                raise UserError(
                    f"{table.where(row)}: no image of {train} has the class {printable(name)!r}; add "
                    "some, or remove it here"
                )
            labels[row, column[name]] = 1
    return labels


def _of_columns(train: _Table, other: _Table) -> list[np.ndarray]:
    """Labels where every class has a column, those of ``other`` in the order of ``train``."""
    if odd := sorted(set(train.columns) ^ set(other.columns)):
        having, lacking = (train, other) if odd[0] in train.columns else (other, train)
        raise UserError(
            f"{having.path} has the column {odd[0]}, which {lacking.path} lacks; both need the same classes"
        )
    tables = (train, other)
    codes = [np.frombuffer(t.codes, np.uint8).reshape(len(t.images), -1) for t in tables]
    codes[1] = codes[1][:, [other.columns.index(name) for name in train.columns]]
    if not (codes[0] >= _ABSENT).any():
        raise UserError(f"{train.path} has no 0: empty cells are not known; write 0 for absent")
    if any((part == _ABSENT).any() for part in codes):
        for table, part in zip(tables, codes, strict=True):
            for row, column in np.argwhere(part == _MINUS)[:1].tolist():
                raise UserError(
                    f"{table.where(row)}: {train.columns[column]} is -1, where other cells have 0 for absent; "
                    "leave cells empty that are not known"
                )
    return [_LABELS[part] for part in codes]


def _checked(
    root: Path, table: _Table, labels: np.ndarray, classes: list[str], skip_bad: bool
) -> MultiLabelList:
    """One split with its images checked."""
    first: dict[str, int] = {}
    for row, image in enumerate(table.images):
        before = first.setdefault(image, row)
        if before != row and not np.array_equal(labels[before], labels[row]):
            raise UserError(
                f"{table.where(row)}: {image} has other labels than in line {table.lines[before]}"
            )
    listed = ImageList(root, table.images, list(range(len(labels))), classes)
    try:
        listed = listed.checked(skip_bad)
    except UserError:
        absent = [r for r, image in enumerate(table.images) if not os.path.isfile(root / image)]
        if not absent:
            raise
        raise UserError(
            f"{table.where(absent[0])}: image {root / table.images[absent[0]]} does not exist (nor do "
            f"{len(absent) - 1} more); paths are to be relative to {root}"
        ) from None
    kept = listed.labels  # the rows that can be read
    return MultiLabelList(replace(listed, labels=[0] * len(kept)), labels[kept])
