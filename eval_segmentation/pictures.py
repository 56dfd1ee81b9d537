"""A picture of some test images: their true labels left, the predicted ones right, as colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval_segmentation.metrics import confusion
from eval_segmentation.pairs import IGNORE, SegmentationData, read_mask
from siambench.data.images import decode
from siambench.files import atomic_path
from siambench.sheet import INK, PAPER, Row, scaled, sheet, spread

MOST = 6  # images
SHADES = 8  # of grey that the image keeps under its labels; fewer where there are many classes
_COVER = 0.6  # how much of the image a label hides
_COLOURS = 220  # of the 256 of a picture, for labels
_IGNORED = "not labelled"


def shown(data: SegmentationData) -> list[int]:
    """The indices into ``data.val`` of the images to draw: at most ``MOST``, evenly spread."""
    return spread(range(len(data.val)), MOST)


def draw_pictures(
    data: SegmentationData, predictions: Mapping[int, np.ndarray], path: Path
) -> None:
    """Write a PNG with a row per image: the ground truth left, the prediction right, atomically.

    The image is grey below its labels, which have the colours of ``data.palette``; pixels without a
    label are white. A legend names the classes that occur. Above each prediction stands the mIoU of
    that image alone, over the classes in its truth or its prediction. The same arguments give the
    same bytes.

    Args:
        data: whose test images are shown.
        predictions: index into ``data.val`` to labels (H, W), uint8, at the mask's resolution.
        path: of the PNG.

    Raises:
        UserError: an image cannot be read any more, or ``path`` not be written.
    """
    truths = {i: read_mask(data.val[i].mask, data.table) for i in sorted(predictions)}
    labels = [values for i in truths for values in (truths[i], predictions[i])]
    occur = sorted(set().union(*(np.unique(values).tolist() for values in labels)) - {IGNORE})
    tints = _tints(data, min(SHADES, max(_COLOURS // max(len(occur), 1) - 1, 1)))
    rows: list[Row] = []
    for i, truth in truths.items():
        grey = scaled(decode(data.val[i].image).convert("L"))
        left, right = (_drawn(grey, values, tints) for values in (truth, predictions[i]))
        score = f"prediction, mIoU {_miou(truth, predictions[i], len(data.classes))}"
        rows.append((f"{data.val[i].image.stem}: ground truth", score, left, right))
    legend = [(data.classes[label], data.palette[label]) for label in occur]
    if any((truth == IGNORE).any() for truth in truths.values()):
        legend.append((_IGNORED, PAPER))
    keep = [PAPER, INK, *(colour for _, colour in legend)]
    keep += [tuple(colour) for label in occur for colour in tints[label].tolist()]
    with atomic_path(path) as temporary:
        sheet(rows, keep[:240], legend).save(temporary, format="png", optimize=True)


def _tints(data: SegmentationData, shades: int) -> np.ndarray:
    """uint8 (256, shades, 3): each label's colour over each shade of grey; without a label, white."""
    grey = (np.arange(shades) + 0.5) * 256 / shades
    tints = np.full((256, shades, 3), PAPER, np.uint8)
    palette = np.array(data.palette, float)
    mixed = _COVER * palette[:, None] + (1 - _COVER) * grey[:, None]
    tints[: len(palette)] = mixed.round()
    return tints


def _drawn(grey: Image.Image, labels: np.ndarray, tints: np.ndarray) -> Image.Image:
    """``labels`` over ``grey``, in its size."""
    small = Image.fromarray(labels).resize(grey.size, Image.Resampling.NEAREST)
    shade = np.asarray(grey).astype(int) * tints.shape[1] // 256
    return Image.fromarray(tints[np.asarray(small), shade])


def _miou(truth: np.ndarray, prediction: np.ndarray, classes: int) -> str:
    """In %; of an image without labelled pixels a hyphen."""
    matrix = confusion(torch.from_numpy(truth), torch.from_numpy(prediction), classes)
    hits, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    there = union > 0
    return f"{100 * float((hits[there] / union[there]).mean()):.1f}" if there.any() else "-"
