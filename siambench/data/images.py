"""Reading images, and folders of them in ImageNet's layout (``train/CLASS/*``, ``val/CLASS/*``)."""

import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from siambench.errors import UserError
from siambench.files import digest_of, existing
from siambench.record import DatasetInfo

# torchvision.datasets.folder.IMG_EXTENSIONS
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
MARKER = "siambench-data.json"  # names a generated data set: {"name": ..., "seed": ..., ...}

# A data set with exactly these counts is the real one, and published numbers stand beside it.
OFFICIAL_COUNTS: dict[str, dict[str, int]] = {
    "imagenet-1k": {"train": 1_281_167, "val": 50_000},  # ILSVRC 2012 devkit
    "places205": {"train": 2_448_873, "val": 20_500},  # Zhou et al. 2014, places205 readme
    "inat18": {"train": 437_513, "val": 24_426},  # iNaturalist 2018 competition readme
    "voc07": {"trainval": 5_011, "test": 4_952},  # VOC2007 devkit, Main/*.txt
    "voc0712": {"trainval": 16_551, "test": 4_952},  # VOC2007 + VOC2012 trainval
    "coco2017": {"train": 118_287, "val": 5_000},  # instances_{train,val}2017.json
    "voc12aug": {"train": 10_582, "val": 1_449},  # VOC 2012 + SBD, train_aug.txt
    "cityscapes": {"train": 2_975, "val": 500},  # gtFine
}
# What else is known of them, under the names that evaluations count by; a name needs none of it.
# "not_difficult" and "classes": table 1 of the VOC2007 and VOC2012 development kits (27,450 objects in
# 2012's trainval). 14,976: sum of the classes that detectron2 lists for voc_2007_test (its issue 2894);
# for trainval with the difficult ones no source was found. COCO: 849,949 and 36,335 annotations are no
# crowds (github.com/cocodataset/cocoapi/issues/117), two of train2017's are flat (issue 355), so unused.
OFFICIAL_CONTENTS: dict[str, dict[str, int]] = {
    "imagenet-1k": {"classes": 1_000},
    "places205": {"classes": 205},
    "inat18": {"classes": 8_142},
    "voc07": {
        "classes": 20,
        "trainval_not_difficult": 12_608,
        "test_boxes": 14_976,
        "test_not_difficult": 12_032,
    },
    "voc0712": {
        "classes": 20,
        "trainval_not_difficult": 12_608 + 27_450,
        "test_boxes": 14_976,
        "test_not_difficult": 12_032,
    },
    "coco2017": {"classes": 80, "train_boxes": 849_947, "val_boxes": 36_335},
    "voc12aug": {"classes": 21},  # with the background
    "cityscapes": {"classes": 19},
}


_UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
)


def decode(path: str | Path) -> Image.Image:
    """Decode an image to upright RGB: EXIF rotation applied, palette, grey, CMYK and alpha as PIL does.

    Alpha and colour profiles are dropped. Of 16-bit grey the upper 8 bits are taken, where PIL's conversion makes nearly all of it white.

    Raises:
        UserError: the file is absent, truncated, not an image, or of floats, which have no range.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                raise ValueError("its pixels are floats; save it with 8 bits")
            if image.mode.startswith("I"):
                values = np.asarray(image)
                # Pillow gives 16-bit PGM the mode of 32-bit integers
                deep = image.mode != "I" or image.format == "PPM" or values.max() > 255
                grey = (values >> 8 if deep else values).clip(0, 255).astype(np.uint8)
                return Image.fromarray(grey).convert("RGB")
            image.info.pop("transparency", None)  # dropped anyway, but not without a warning
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except _UNDECODABLE as error:
        raise UserError(
            f"image {path} cannot be decoded ({error}); replace it, or leave such files out with "
            "--skip_bad"
        ) from None


def decode_array(path: str | Path) -> np.ndarray:
    """As :func:`decode`, to uint8 (H, W, 3); faster for the usual JPEGs, bit for bit the same.

    Raises:
        UserError: the file is absent, truncated or not an image.
    """
    try:
        data = Path(path).read_bytes()
        if _plain_jpeg(data):
            # The decoder's defaults are libjpeg's exact ones, which Pillow uses too; it refuses what
            # libjpeg only warns of, and decode() then judges.
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except _UNDECODABLE:
        pass
    return np.array(decode(path))


def _plain_jpeg(data: bytes) -> bool:
    """Whether a file is one upright 8-bit JPEG in YCbCr or grey, told by the marks before the scan."""
    at, adobe = 2, None
    if data[:3] != b"\xff\xd8\xff":
        return False
    while at + 18 < len(data) and data[at] == 0xFF:
        mark, body = data[at + 1], at + 4
        length = data[at + 2] << 8 | data[at + 3]
        if mark == 0xE1 and not _upright(data):  # APP1: EXIF or XMP
            return False
        if mark == 0xE2 and data[body : body + 4] == b"MPF\0":  # several pictures
            return False
        if mark == 0xEE and data[body : body + 5] == b"Adobe":
            adobe = data[body + 11]
        if mark in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, parts = data[body], data[body + 5]
            size = (data[body + 1] << 8 | data[body + 2]) * (data[body + 3] << 8 | data[body + 4])
            ids = data[body + 6 : body + 15 : 3]
            coloured = parts == 3 and adobe in (None, 1) and ids == b"\1\2\3"
            within = size <= (Image.MAX_IMAGE_PIXELS or size)
            return bits == 8 and within and (coloured or parts == 1)
        if mark == 0xDA:
            return False
        at += 2 + length
    return False


def _upright(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


_TAIL = 4096  # bytes at the end of a file that are looked at
_BLOCK = 2048  # files per task of a thread


@dataclass(frozen=True)
class FileFacts:
    """What one look at each of n files found.

    Attributes:
        size: bytes, int64 (n,).
        mtime: of the last change, ns, int64 (n,).
        mark: digest of the size and the last 4 KiB, uint64 (n,): equal files have equal marks, and
            files with equal marks are nearly always equal.
    """

    size: np.ndarray
    mtime: np.ndarray
    mark: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "FileFacts":
        """The facts of some of the files."""
        return FileFacts(self.size[index], self.mtime[index], self.mark[index])


def check_images(paths: Sequence[str | Path], skip_bad: bool) -> list[bool]:
    """Which of ``paths`` can be read, found before work starts.

    A JPEG or PNG with its end mark in place is taken as whole; others are decoded. With
    ``skip_bad`` all are decoded, since no other check can promise that none fails later.

    Raises:
        UserError: one cannot be read and ``skip_bad`` is False; the line names the first and counts.
    """
    return examine_images(paths, skip_bad)[0]


def examine_images(paths: Sequence[str | Path], skip_bad: bool) -> tuple[list[bool], FileFacts]:
    """As :func:`check_images`, and what the same look at the files found of all of them.

    Raises:
        UserError: as :func:`check_images`.
    """
    found, facts = inspect_images(paths, skip_bad)
    bad = [text for text in found if text]
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more bad images)" if len(bad) > 1 else ""
        raise UserError(bad[0] + more, bad)
    return [not text for text in found], facts


def inspect_images(paths: Sequence[str | Path], decode_all: bool) -> tuple[list[str], FileFacts]:
    """What is wrong with each of ``paths`` (``""``: nothing), and what the look at the files found.

    Args:
        paths: of the files.
        decode_all: decode also those whose end mark is in place.
    """
    count = len(paths)
    facts = FileFacts(
        np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.uint64)
    )
    found = [""] * count

    def examine(number: int) -> None:
        path = paths[number]
        try:
            whole = _look(path, number, facts)
            if decode_all or not whole:
                decode(path)
        except UserError as error:
            found[number] = str(error)
        except OSError as error:
            found[number] = f"image {path} cannot be read ({error.strerror})"

    def block(start: int) -> None:
        for number in range(start, min(start + _BLOCK, count)):
            examine(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(block, range(0, count, _BLOCK)))
    return found, facts


def _look(path: str | Path, number: int, facts: FileFacts) -> bool:
    """Fill in the facts of one file; whether it is a JPEG or PNG with its end mark at the end."""
    name = os.fspath(path)
    handle = os.open(name, os.O_RDONLY)
    try:
        status = os.fstat(handle)
        tail = os.pread(handle, _TAIL, max(0, status.st_size - _TAIL))
    finally:
        os.close(handle)
    facts.size[number], facts.mtime[number] = status.st_size, status.st_mtime_ns
    content = tail + status.st_size.to_bytes(8, "little")
    facts.mark[number] = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
    end = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}
    mark = end.get(os.path.splitext(name)[1].lower())
    return mark is not None and mark in tail[-32:]


@dataclass(frozen=True)
class ImageList:
    """Images of one split with one label each.

    Attributes:
        root: folder the paths are relative to.
        paths: root-relative, sorted.
        labels: index into ``classes``, one per path.
        classes: class names.
        skipped: images left out under ``skip_bad``.
        facts: what the check of the files found, if they were checked.
    """

    root: Path
    paths: list[str]
    labels: list[int]
    classes: list[str]
    skipped: int = 0
    facts: FileFacts | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: np.ndarray) -> "ImageList":
        """Some of the images, by number."""
        return replace(
            self,
            paths=[self.paths[i] for i in index.tolist()],
            labels=[self.labels[i] for i in index.tolist()],
            facts=self.facts and self.facts[index],
        )

    def checked(self, skip_bad: bool) -> "ImageList":
        """The images that can be read, with ``facts``.

        Raises:
            UserError: one cannot be read and ``skip_bad`` is False, or not one can.
        """
        good, facts = examine_images([f"{self.root}/{path}" for path in self.paths], skip_bad)
        if not any(good):
            raise UserError(f"{self.root}: not one of {len(good)} images can be read")
        kept = replace(self, facts=facts)
        return kept if all(good) else replace(kept[np.flatnonzero(good)], skipped=good.count(False))

    def fingerprint(self) -> str:
        """SHA-256 over (relative path, bytes, label, digest of the last 4 KiB).

        Raises:
            UserError: the files were not checked, and one cannot be read.
        """
        facts = self.facts
        if facts is None:
            _, facts = examine_images([f"{self.root}/{path}" for path in self.paths], False)
        # names that are no UTF-8 have no JSON
        names = (os.fsencode(path).decode(errors="backslashreplace") for path in self.paths)
        columns = (names, facts.size.tolist(), self.labels, facts.mark.tolist())
        return digest_of([list(row) for row in zip(*columns, strict=True)])


def read_image_folder(
    root: str | Path, split: str, *, skip_bad: bool = False, classes: Sequence[str] | None = None
) -> ImageList:
    """List ``root/split/CLASS/**`` as torchvision's ImageFolder does, checked.

    Args:
        root: the data set's folder.
        split: ``"train"`` or ``"val"``; empty for ``root/CLASS/**``.
        skip_bad: leave out unreadable images and count them, instead of refusing.
        classes: the classes of another split; this split may have no other.

    Raises:
        UserError: the folder is absent, has no class folder, a class folder is empty, a class is not
            among ``classes``, or an image cannot be read.
    """
    root = Path(root)
    folder = existing(
        root / split,
        "image folder",
        folder=True,
        hint=f"expected ImageNet's layout, {root}/{split}/CLASS/IMAGE",
    )
    names = sorted(entry.name for entry in class_folders(folder))
    if not names:
        raise UserError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE")
    known = list(classes) if classes is not None else names
    foreign = sorted(set(names) - set(known))
    if foreign:
        raise UserError(f"{folder}/{foreign[0]} is a class that the other split does not have")
    paths: list[str] = []
    labels: list[int] = []
    for name in names:
        inside = _images_inside(folder / name, f"{split}/{name}" if split else name)
        if not inside:
            raise UserError(
                f"class folder {folder / name} has no images ({', '.join(sorted(EXTENSIONS))}); "
                "fill it or remove it"
            )
        paths += inside
        labels += [known.index(name)] * len(inside)
    return ImageList(root, paths, labels, known).checked(skip_bad)


def class_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are not hidden (.ipynb_checkpoints and its like)."""
    return [e for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")]


def _images_inside(folder: Path, prefix: str) -> list[str]:
    """The images under ``folder``, in the order of their paths' parts; ``prefix`` in its place.

    Links to folders are followed, as torchvision does, but not in circles.
    """
    found = []
    above = {str(folder): {os.path.realpath(folder)}}  # of each place, the folders it lies in
    for place, within, names in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in within}
        within[:] = [name for name in within if real[name] not in above[place]]
        above |= {os.path.join(place, name): above[place] | {real[name]} for name in within}
        inside = place[len(str(folder)) :].replace(os.sep, "/")
        for name in names:
            known = os.path.splitext(name)[1].lower() in EXTENSIONS
            if known and os.path.isfile(os.path.join(place, name)):
                found.append(f"{prefix}{inside}/{name}")
    return sorted(found, key=lambda path: path.split("/"))


def dataset_name(root: str | Path, counts: dict[str, int]) -> str:
    """Official name if ``counts`` are the official ones; else the marker's name; else the folder's.

    A folder that has an official name and other counts does not get it: published rows go by the name.
    """
    for name, official in OFFICIAL_COUNTS.items():
        if all(counts.get(split) == n for split, n in official.items()):
            return name
    root = Path(root).resolve()
    for folder in (root, *root.parents):
        if "name" in (marker := read_marker(folder)):
            return _unofficial(str(marker["name"]))
    return _unofficial(root.name)


def _unofficial(name: str) -> str:
    return f"{name} (other counts)" if name in OFFICIAL_COUNTS else name


def read_marker(folder: Path) -> dict[str, Any]:
    """What a generated data set says of itself; empty where there is no marker.

    Raises:
        UserError: the marker is damaged.
    """
    path = folder / MARKER
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); make the data set again") from None


class Listed(Protocol):
    """Images with labels that can be described."""

    @property
    def classes(self) -> list[str]: ...

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str: ...


def describe(root: str | Path, lists: Mapping[str, Listed]) -> DatasetInfo:
    """The :class:`DatasetInfo` of checked splits."""
    counts = {split: len(images) for split, images in lists.items()}
    name = dataset_name(root, counts)
    counts["classes"] = len(next(iter(lists.values())).classes)
    counts["skipped"] = sum(images.skipped for images in lists.values())
    parts = {split: images.fingerprint() for split, images in lists.items()}
    return DatasetInfo(name, digest_of(parts), counts)
