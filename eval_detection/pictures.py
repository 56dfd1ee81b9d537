"""A picture of some test images: the ground truth left, what was found right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from pycocotools import mask as rle_tools

from eval_detection.masks import fill
from eval_detection.results import Result
from eval_detection.samples import DetectionData, Sample
from siambench.data.images import decode
from siambench.errors import printable
from siambench.files import atomic_path

SURE = 0.5  # detections from this score on are drawn; of an image without any, its best FEW
FEW = 3
LARGEST, SMALLEST = 400, 160  # px of a picture's longer side
GAP, LINE = 8, 18  # px between pictures, and of a line of text above each row
# Okabe & Ito 2008, told apart by readers of every colour vision; class after class, then again
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
_RGB = [ImageColor.getrgb(colour) for colour in COLOURS]
_PAPER, _INK = (255, 255, 255), (0, 0, 0)
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
    chosen = _spread([s for s in data.test if len(s.boxes)], most)
    found: dict[int | str, list[Result]] = {s.id: [] for s in chosen}
    for result in results:
        if result["image_id"] in found:
            found[result["image_id"]].append(result)
    names = [printable(name, _LETTERS) for name in data.classes]
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    rows = []
    for sample in chosen:
        sides = [_truth(sample, names), _detections(found[sample.id], names, label_of)]
        image = _scaled(decode(sample.path))
        left, right = (_drawn(image, things, sample) for things in sides)
        rows.append((f"{sample.id}: ground truth", f"detections: {len(sides[1])}", left, right))
    with atomic_path(path) as temporary:
        _few_colours(_page(rows)).save(temporary, format="png", optimize=True)


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    places = np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int)
    return [samples[i] for i in places]


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


def _scaled(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    factor = min(max(longest, SMALLEST), LARGEST) / longest
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    width, height = (max(round(side * factor), 1) for side in image.size)
    return image.resize((width, height), how)


def _drawn(image: Image.Image, things: list[_Thing], sample: Sample) -> Image.Image:
    """A copy of ``image`` with masks, then boxes, then names."""
    image = image.copy()
    for thing in things:
        if thing.mask is not None:
            cover = Image.fromarray(np.asarray(thing.mask, np.uint8) * np.uint8(_COVER))
            cover = cover.resize(image.size, Image.Resampling.NEAREST)
            image.paste(_RGB[thing.label % len(_RGB)], mask=cover)
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
    colour = _RGB[thing.label % len(_RGB)]
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
    colour = _RGB[thing.label % len(_RGB)]
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    bright = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] > 140_000  # ITU-R BT.601
    pen.text((x + 2, y), thing.text, fill=_INK if bright else _PAPER, font=font)


def _page(rows: list[tuple[str, str, Image.Image, Image.Image]]) -> Image.Image:
    """Row below row, each pair of pictures under a line of text; both columns as wide as the widest."""
    wide = max((left.width for *_, left, _ in rows), default=SMALLEST)
    high = sum(LINE + left.height + GAP for *_, left, _ in rows) + GAP
    page = Image.new("RGB", (2 * wide + 3 * GAP, high), _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    y = GAP
    for *texts, left, right in rows:
        for x, text, picture in zip((GAP, 2 * GAP + wide), texts, (left, right), strict=True):
            pen.text((x, y), printable(text, wide // 7), fill=_INK, font=font)
            page.paste(picture, (x, y + LINE))
        y += LINE + left.height + GAP
    return page


def _few_colours(page: Image.Image) -> Image.Image:
    """256 colours, those of the classes kept as they are: half the bytes and as good to look at."""
    rest = page.quantize(256 - len(_RGB) - 2, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for colour in (*_RGB, _PAPER, _INK) for v in colour] + rest)
    return page.quantize(palette=palette, dither=Image.Dither.NONE)
