"""The data of both verbs: train and val in ImageNet's layout, checked before any work."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siambench.data.images import ImageList, describe, read_image_folder
from siambench.record import DatasetInfo


@dataclass(frozen=True)
class Folders:
    """Two splits with one list of classes.

    Attributes:
        train, val: the images.
        info: name, fingerprint and counts.
    """

    train: ImageList
    val: ImageList
    info: DatasetInfo

    @property
    def classes(self) -> list[str]:
        """Class names; labels index into them."""
        return self.train.classes

    def labels(self, split: str) -> np.ndarray:
        """Labels of ``"train"`` or ``"val"``, int64."""
        return np.array(getattr(self, split).labels, np.int64)

    def paths(self, split: str) -> list[Path]:
        """Absolute paths of ``"train"`` or ``"val"``, in the order of the labels."""
        images = getattr(self, split)
        return [images.root / path for path in images.paths]


def open_folders(root: str, skip_bad: bool) -> Folders:
    """Read ``root/train`` and ``root/val``.

    Raises:
        UserError: as :func:`siambench.data.images.read_image_folder`.
    """
    train = read_image_folder(root, "train", skip_bad=skip_bad)
    val = read_image_folder(root, "val", skip_bad=skip_bad, classes=train.classes)
    return Folders(train, val, describe(root, {"train": train, "val": val}))
