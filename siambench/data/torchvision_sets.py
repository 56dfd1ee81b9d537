"""torchvision's classification data sets: one table of their splits and of where labels lie.

Pictures that are files are read as files, so that they are checked, decoded and told apart as those
of any folder; the others are taken as the arrays that torchvision holds. Left out are sets that are
not classification with the same classes in both splits (CelebA, LFW, Omniglot, ...), that need more
packages (PCAM: h5py), whose test labels depend on the download (FER2013), whose labels are only drawn
with the pictures (FakeData), and ImageNet and iNaturalist, which are read as folders and lists.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siambench.data.images import ImageList
from siambench.data.pictures import ArrayImages
from siambench.errors import UserError, first_line
from siambench.files import digest_of, existing

Part = tuple[np.ndarray | list[str], Sequence[int]]  # pixels (n, H, W[, 3]) or paths; and labels


@dataclass(frozen=True)
class ArrayList:
    """Pictures in memory with one label each; as :class:`siambench.data.images.ImageList`."""

    images: ArrayImages
    labels: list[int]
    classes: list[str]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels."""
        return digest_of([self.images.stamp(), self.labels])


def _arrays(labels: str, channels_first: bool = False) -> Callable[[Any], Part]:
    def read(found: Any) -> Part:
        pixels = np.asarray(found.data)
        return np.moveaxis(pixels, 1, -1) if channels_first else pixels, getattr(found, labels)

    return read


def _files(files: str) -> Callable[[Any], Part]:
    return lambda found: ([str(p) for p in getattr(found, files)], found._labels)


def _pairs(pairs: str) -> Callable[[Any], Part]:
    def read(found: Any) -> Part:
        rows = getattr(found, pairs)
        return [str(path) for path, _ in rows], [label for _, label in rows]

    return read


def _caltech(folder: str, name: str) -> Callable[[Any], Part]:
    def read(found: Any) -> Part:
        rows = list(zip(found.y, found.index, strict=True))
        paths = [
            f"{found.root}/{folder}/{found.categories[y]}/{name.format(y + 1, i)}" for y, i in rows
        ]
        return paths, found.y

    return read


class _Set(NamedTuple):
    """How to open the parts of each split, and what to read of an opened one."""

    splits: dict[str, list[dict[str, Any]]]
    read: Callable[[Any], Part]


_FLAG = {"train": [{"train": True}], "test": [{"train": False}]}
_TRAIN_TEST = {"train": [{"split": "train"}], "test": [{"split": "test"}]}
_TRAINVAL = {"trainval": [{"split": "trainval"}], "test": [{"split": "test"}]}
# Where there is a validation split of its own, the probe learns from it too (Kornblith et al. 2019,
# arXiv 1805.08974, table 1: DTD 3,760 and Flowers 2,040; Radford et al. 2021, arXiv 2103.00020).
_BOTH = {"trainval": [{"split": "train"}, {"split": "val"}], "test": [{"split": "test"}]}
_ALL: dict[str, list[dict[str, Any]]] = {"all": [{}]}  # no official split: divided

SETS: dict[str, _Set] = {
    "MNIST": _Set(_FLAG, _arrays("targets")),
    "FashionMNIST": _Set(_FLAG, _arrays("targets")),
    "KMNIST": _Set(_FLAG, _arrays("targets")),
    "EMNIST": _Set(
        {
            "train": [{"split": "balanced", "train": True}],
            "test": [{"split": "balanced", "train": False}],
        },
        _arrays("targets"),
    ),
    "USPS": _Set(_FLAG, _arrays("targets")),
    "CIFAR10": _Set(_FLAG, _arrays("targets")),
    "CIFAR100": _Set(_FLAG, _arrays("targets")),
    "SVHN": _Set(_TRAIN_TEST, _arrays("labels", channels_first=True)),
    "STL10": _Set(_TRAIN_TEST, _arrays("labels", channels_first=True)),
    "Food101": _Set(_TRAIN_TEST, _files("_image_files")),
    "DTD": _Set(_BOTH, _files("_image_files")),
    "Flowers102": _Set(_BOTH, _files("_image_files")),
    "FGVCAircraft": _Set(_TRAINVAL, _files("_image_files")),
    "OxfordIIITPet": _Set(_TRAINVAL, _files("_images")),
    "StanfordCars": _Set(_TRAIN_TEST, _pairs("_samples")),
    "Country211": _Set(
        {"trainval": [{"split": "train"}, {"split": "valid"}], "test": [{"split": "test"}]},
        _pairs("samples"),
    ),
    "GTSRB": _Set(_TRAIN_TEST, _pairs("_samples")),
    "RenderedSST2": _Set(_BOTH, _pairs("_samples")),
    "Imagenette": _Set(
        {"train": [{"split": "train"}], "val": [{"split": "val"}]}, _pairs("_samples")
    ),
    "Places365": _Set(
        {
            "train": [{"split": "train-standard", "small": True}],
            "val": [{"split": "val", "small": True}],
        },
        _pairs("imgs"),
    ),
    "CLEVRClassification": _Set(
        {"train": [{"split": "train"}], "val": [{"split": "val"}]}, _files("_image_files")
    ),
    "EuroSAT": _Set(_ALL, _pairs("samples")),
    "Caltech101": _Set(_ALL, _caltech("101_ObjectCategories", "image_{1:04d}.jpg")),
    "Caltech256": _Set(_ALL, _caltech("256_ObjectCategories", "{0:03d}_{1:04d}.jpg")),
    "SUN397": _Set(_ALL, _files("_image_files")),
}


def open_torchvision(name: str, root: Path, download: bool) -> dict[str, ImageList | ArrayList]:
    """The splits of ``torchvision.datasets.NAME`` under ``root``, train first; files not yet checked.

    A set without official splits has the one split ``"all"``, sorted by path.

    Args:
        name: as torchvision's class is called.
        root: the folder that torchvision is to find or put it in.
        download: fetch it if it is not there.

    Raises:
        UserError: the name is not in the table, or the data set is not there or damaged, or cannot
            be downloaded.
    """
    if name not in SETS:
        raise UserError(f"torchvision:{name} is not known; choose from {', '.join(SETS)}")
    if not download:
        existing(
            root, f"torchvision:{name}", folder=True, hint="--download true fetches the data set"
        )
    root = root.absolute()
    parts: dict[str, list[Part]] = {}
    classes: list[str] = []
    for split, arguments in SETS[name].splits.items():
        opened = [_open(name, root, download, one) for one in arguments]
        parts[split] = [SETS[name].read(found) for found in opened]
        classes = classes or _class_names(opened[0])
    if not classes:  # then labels may be of any numbers, and these are the names
        labels = [np.asarray(y) for rows in parts.values() for _, y in rows]
        numbers = np.unique(np.concatenate(labels))
        classes = [str(number) for number in numbers]
        parts = {
            split: [(pictures, np.searchsorted(numbers, y).tolist()) for pictures, y in rows]
            for split, rows in parts.items()
        }
    return {split: _listed(name, split, root, rows, classes) for split, rows in parts.items()}


def _open(name: str, root: Path, download: bool, arguments: dict[str, Any]) -> Any:
    from torchvision import datasets

    fetch = {"download": True} if download else {}
    try:
        with redirect_stdout(sys.stderr):  # results alone go to standard output
            return getattr(datasets, name)(str(root), **arguments, **fetch)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError) as error:
        if download:
            hint = "put it there by hand, or try again"
        else:
            hint = "name the folder as torchvision:NAME:FOLDER, or let --download true fetch it"
        why = (
            first_line(error).split(". ")[0].rstrip(".")
        )  # without advice about torchvision's flags
        raise UserError(
            f"torchvision:{name} is not to be had from {root} ({why}); {hint}"
        ) from None


def _class_names(found: Any) -> list[str]:
    """The class names that the data set knows; Imagenette's are tuples of synonyms."""
    names = getattr(found, "classes", None) or getattr(found, "categories", None) or []
    return [name if isinstance(name, str) else ", ".join(name) for name in names]


def _listed(
    name: str, split: str, root: Path, parts: list[Part], classes: list[str]
) -> ImageList | ArrayList:
    """The parts of one split, one behind the other."""
    labels = [int(label) for _, part in parts for label in part]
    if isinstance(parts[0][0], np.ndarray):
        pixels = np.concatenate([np.asarray(pictures) for pictures, _ in parts])
        return ArrayList(ArrayImages(f"{name} {split}", pixels), labels, classes)
    start = len(os.path.join(root, ""))
    paths = [path[start:] for pictures, _ in parts for path in pictures]
    if split == "all":
        rows = sorted(zip(paths, labels, strict=True))
        paths, labels = [path for path, _ in rows], [label for _, label in rows]
    return ImageList(root, paths, labels, classes)
