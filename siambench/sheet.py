"""A sheet of pictures in two columns, e.g. the ground truth beside what was found."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from siambench.errors import printable

LARGEST, SMALLEST = 400, 160  # px of a picture's longer side
GAP, LINE = 8, 18  # px between pictures, and of a line of text above each row
# Okabe & Ito 2008, told apart by readers of every colour vision; class after class, then again
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
RGB = [ImageColor.getrgb(colour) for colour in COLOURS]
PAPER, INK = (255, 255, 255), (0, 0, 0)

T = TypeVar("T")
Row = tuple[str, str, Image.Image, Image.Image]  # the texts and the pictures, left and right


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``things``, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(things) - 1, min(most, len(things))).round().astype(int)
    return [things[i] for i in places]


def scaled(image: Image.Image) -> Image.Image:
    """``image`` with its longer side within ``SMALLEST`` and ``LARGEST`` px."""
    longest = max(image.size)
    factor = min(max(longest, SMALLEST), LARGEST) / longest
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    width, height = (max(round(side * factor), 1) for side in image.size)
    return image.resize((width, height), how)


def sheet(rows: Sequence[Row], keep: Sequence[tuple[int, ...]] = (*RGB, PAPER, INK)) -> Image.Image:
    """Row below row, each pair of pictures under a line of text; both columns as wide as the widest.

    Args:
        rows: from above.
        keep: colours that stay as they are; all others share what is left of 256, which halves the
            bytes and is as good to look at.
    """
    wide = max((left.width for *_, left, _ in rows), default=SMALLEST)
    high = sum(LINE + left.height + GAP for *_, left, _ in rows) + GAP
    page = Image.new("RGB", (2 * wide + 3 * GAP, high), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    y = GAP
    for *texts, left, right in rows:
        for x, text, picture in zip((GAP, 2 * GAP + wide), texts, (left, right), strict=True):
            pen.text((x, y), printable(text, wide // 7), fill=INK, font=font)
            page.paste(picture, (x, y + LINE))
        y += LINE + left.height + GAP
    rest = page.quantize(256 - len(keep), dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in keep for value in colour] + rest)
    return page.quantize(palette=palette, dither=Image.Dither.NONE)
