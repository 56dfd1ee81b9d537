"""Images with masks: what a data set lists, and what training and testing take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from siambench.data.images import decode_array
from siambench.data.layouts import voc_palette
from siambench.errors import UserError, first_line
from siambench.record import DatasetInfo

IGNORE = 255  # VOC's border and all that Cityscapes does not train on
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Pair:
    """An image, its mask of the same size, and that size as (width, height)."""

    image: Path
    mask: Path
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Listing:
    """What a data set's lists and folders say, before a picture is looked at.

    Attributes:
        folder: what the names of its files are relative to.
        classes: names, in the order of the labels.
        values: the values that masks may hold beside ``IGNORE``; in the order of ``labels``.
        labels: the label of each value, or ``IGNORE``.
        train, val: pairs, their sizes unknown.
        palette: a colour per class.
    """

    folder: Path
    classes: list[str]
    values: Sequence[int]
    labels: Sequence[int]
    train: list[Pair]
    val: list[Pair]
    palette: list[Colour]

    @property
    def table(self) -> np.ndarray:
        """uint8 (256,), from a value in a mask file to a label (or ``IGNORE``)."""
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.values)] = self.labels
        return table

    @property
    def splits(self) -> Mapping[str, list[Pair]]:
        """The pairs by split."""
        return {"train": self.train, "val": self.val}


@dataclass(frozen=True)
class SegmentationData:
    """What there is to train and test on.

    Attributes:
        classes: names, in the order of the label values.
        table: uint8 (256,), from a value in a mask file to a label (or ``IGNORE``).
        train, val: checked pairs.
        info: name, fingerprint and counts, for the record.
        palette: a colour per class, for pictures.
    """

    classes: list[str]
    table: np.ndarray
    train: list[Pair]
    val: list[Pair]
    info: DatasetInfo
    palette: list[Colour] = field(default_factory=lambda: voc_colours(IGNORE))


def read_pair(pair: Pair, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and labels (H, W), uint8.

    Raises:
        UserError: a file is gone or damaged since it was checked, or the two differ in size after all.
    """
    image = decode_array(pair.image)
    try:
        labels = read_mask(pair.mask, table)
    except Exception as error:  # whatever a damaged PNG or .mat raises
        raise UserError(f"mask {pair.mask} cannot be read ({first_line(error)})") from None
    if image.shape[:2] != labels.shape:
        raise UserError(
            f"image {pair.image} is {image.shape[1]}×{image.shape[0]} when it is upright, its mask "
            f"{labels.shape[1]}×{labels.shape[0]}; they must be of one size"
        )
    return image, labels


def read_mask(path: Path, table: np.ndarray) -> np.ndarray:
    """Labels (H, W), uint8, of a mask file; a palette picture is read as its indices."""
    return table[mask_values(path)]


def mask_values(path: Path) -> np.ndarray:
    """(H, W) as the file has them; of SBD's ``.mat`` files, the classes' segmentation.

    Raises:
        OSError, ValueError, KeyError, TypeError, IndexError, SyntaxError: it cannot be decoded.
    """
    if path.suffix == ".mat":
        # SBD's readme: GTcls.Segmentation is the mask of classes, 0 the background, without a border
        return loadmat(path, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"]
    with Image.open(path) as mask:
        return np.asarray(mask)


def voc_colours(count: int) -> list[Colour]:
    """The first ``count`` colours of VOC's development kit."""
    flat = voc_palette()
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, 3 * count, 3)]
