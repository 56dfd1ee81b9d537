"""A picture of some test images: the ground truth left, what was found right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_tools

from eval_detection.masks import fill
from eval_detection.results import Result
from eval_detection.samples import DetectionData, Sample
from siambench.data.images import decode
from siambench.errors import printable
from siambench.files import atomic_path
from siambench.sheet import INK, PAPER, RGB, scaled, sheet, spread

SURE = 0.5  # detections from this score on are drawn; of an image without any, its best FEW
FEW = 3
_LETTERS = 20  # of a class name
_COVER = 96  # of 255: how much of the image a mask hides
_DASH = 4  # px


@dataclass(frozen=True)
class _Thing:
    """An object or a detection: ``box`` (4,) x0 y0 x1 y1 and ``mask`` (H, W) in px of the original."""

    box: Sequence[float]
    label: int
    text: str
    mask: np.ndarray | None
    dashed: bool = False


def draw_pictures(
    data: DetectionData, results: Sequence[Result], path: Path, most: int = 8
) -> None:
    """Write a PNG with a row per test image: the ground truth left, detections right, atomically.

    The images are spread evenly over those that have objects. Boxes have their class's colour and
    name (detections their score); masks are filled, where there are any; difficult objects are
    dashed. The same arguments give the same bytes.

    Args:
        data: whose test images are shown.
        results: detections in them, in any order.
        path: of the PNG.
        most: rows.

    Raises:
        UserError: an image cannot be read any more, or ``path`` not be written.
    """
    chosen = spread([s for s in data.test if len(s.boxes)], most)
    found: dict[int | str, list[Result]] = {s.id: [] for s in chosen}
    for result in results:
        if result["image_id"] in found:
            found[result["image_id"]].append(result)
    names = [printable(name, _LETTERS) for name in data.classes]
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    rows = []
    for sample in chosen:
        sides = [_truth(sample, names), _detections(found[sample.id], names, label_of)]
        image = scaled(decode(sample.path))
        left, right = (_drawn(image, things, sample) for things in sides)
        drawn, all_of_it = len(sides[1]), len(found[sample.id])
        title = (
            f"detections: {drawn} of {all_of_it}" if drawn < all_of_it else f"detections: {drawn}"
        )
        rows.append((f"{sample.id}: ground truth", title, left, right))
    with atomic_path(path) as temporary:
        sheet(rows).save(temporary, format="png", optimize=True)


def _truth(sample: Sample, names: list[str]) -> list[_Thing]:
    things = []
    for i, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels, strict=True)):
        mask = sample.masks[i] if sample.masks else None
        if isinstance(mask, list):
            mask = fill(mask, sample.height, sample.width)
        things.append(_Thing(box, int(label), names[label], mask, bool(sample.difficult[i])))
    return things


def _detections(found: list[Result], names: list[str], label_of: dict[int, int]) -> list[_Thing]:
    """Those that are shown, the best last: it lies on top."""
    found = sorted(found, key=lambda r: -r["score"])
    found = [r for r in found if r["score"] >= SURE] or found[:FEW]
    things = []
    for r in reversed(found):
        x, y, width, height = r["bbox"]
        label = label_of[r["category_id"]]
        mask = rle_tools.decode(r["segmentation"]) if "segmentation" in r else None
        text = f"{names[label]} {r['score']:.2f}"
        things.append(_Thing([x, y, x + width, y + height], label, text, mask))
    return things


def _drawn(image: Image.Image, things: list[_Thing], sample: Sample) -> Image.Image:
    """A copy of ``image`` with masks, then boxes, then names."""
    image = image.copy()
    for thing in things:
        if thing.mask is not None:
            cover = Image.fromarray(np.asarray(thing.mask, np.uint8) * np.uint8(_COVER))
            cover = cover.resize(image.size, Image.Resampling.NEAREST)
            image.paste(RGB[thing.label % len(RGB)], mask=cover)
    pen = ImageDraw.Draw(image)
    scale = (image.width / sample.width, image.height / sample.height) * 2
    boxes = [[v * s for v, s in zip(thing.box, scale, strict=True)] for thing in things]
    for thing, (x0, y0, x1, y1) in zip(things, boxes, strict=True):
        left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
        right = max(min(math.ceil(x1), image.width) - 1, left)
        bottom = max(min(math.ceil(y1), image.height) - 1, top)
        _outline(pen, (left, top, right, bottom), thing)
    for thing, (x0, y0, _, _) in zip(things, boxes, strict=True):
        _name(pen, image.size, x0, y0, thing)
    return image


def _outline(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], thing: _Thing) -> None:
    colour = RGB[thing.label % len(RGB)]
    if not thing.dashed:
        pen.rectangle(box, outline=colour, width=2)
        return
    left, top, right, bottom = box
    for x in range(left, right + 1, 2 * _DASH):
        for y in (top, max(bottom - 1, top)):
            pen.rectangle((x, y, min(x + _DASH - 1, right), min(y + 1, bottom)), fill=colour)
    for y in range(top, bottom + 1, 2 * _DASH):
        for x in (left, max(right - 1, left)):
            pen.rectangle((x, y, min(x + 1, right), min(y + _DASH - 1, bottom)), fill=colour)


def _name(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], x0: float, y0: float, thing: _Thing
) -> None:
    """Above the box where there is room, else inside it."""
    font = ImageFont.load_default(10)
    width, height = math.ceil(pen.textlength(thing.text, font)) + 3, 12
    x = min(max(math.floor(x0), 0), max(size[0] - width, 0))
    y = math.floor(y0) - height
    y = y if y >= 0 else max(math.floor(y0), 0)
    colour = RGB[thing.label % len(RGB)]
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    bright = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] > 140_000  # ITU-R BT.601
    pen.text((x + 2, y), thing.text, fill=INK if bright else PAPER, font=font)
