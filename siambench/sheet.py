"""A sheet of pictures in two columns, e.g. the ground truth beside what was found."""

import math
from collections.abc import Sequence
from functools import cache
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
_SWATCH, _LETTERS = 10, 24  # px of a legend's square; letters of its names

T = TypeVar("T")
Colour = tuple[int, ...]  # red, green, blue, 0 to 255
Row = tuple[str, str, Image.Image, Image.Image]  # the texts and the pictures, left and right


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)


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


def sheet(
    rows: Sequence[Row],
    keep: Sequence[Colour] = (*RGB, PAPER, INK),
    legend: Sequence[tuple[str, Colour]] = (),
) -> Image.Image:
    """Row below row, each pair of pictures under a line of text; both columns as wide as the widest.

    Args:
        rows: from above.
        keep: at most 255 colours that stay exactly as they are; all others share what is left of
            256, which halves the bytes and is as good to look at.
        legend: names and their colours, in lines above the rows; ``keep`` should hold the colours.
    """
    wide = max((left.width for *_, left, _ in rows), default=SMALLEST)
    places, y = _legend_places(legend, 3 * GAP + 2 * wide)
    high = y + sum(LINE + left.height + GAP for *_, left, _ in rows)
    page = Image.new("RGB", (2 * wide + 3 * GAP, high), PAPER)
    pen = ImageDraw.Draw(page)
    for (x, top, text), (_, colour) in zip(places, legend, strict=True):
        pen.rectangle((x, top + 2, x + _SWATCH, top + 2 + _SWATCH), fill=colour, outline=INK)
        pen.text((x + _SWATCH + 4, top), text, fill=INK, font=_font())
    for *texts, left, right in rows:
        for x, text, picture in zip((GAP, 2 * GAP + wide), texts, (left, right), strict=True):
            pen.text((x, y), printable(text, wide // 7), fill=INK, font=_font())
            page.paste(picture, (x, y + LINE))
        y += LINE + left.height + GAP
    return _with_256_colours(page, list(dict.fromkeys(keep)))


def _legend_places(
    legend: Sequence[tuple[str, Colour]], width: int
) -> tuple[list[tuple[int, int, str]], int]:
    """Left and top of each swatch, with its text, in lines of ``width`` px; and where they end."""
    places, x, y = [], GAP, GAP
    for name, _ in legend:
        text = printable(name, _LETTERS)
        step = _SWATCH + 4 + math.ceil(_font().getlength(text)) + 2 * GAP
        if x > GAP and x + step > width:
            x, y = GAP, y + LINE
        places.append((x, y, text))
        x += step
    return places, y + (LINE + GAP if legend else 0)


def _with_256_colours(page: Image.Image, keep: list[Colour]) -> Image.Image:
    """``page`` with a palette: first ``keep``, whose pixels are exact, then the best of the others."""
    packed = _packed(np.asarray(page).reshape(-1, 3))
    codes = _packed(np.array(keep, np.uint8).reshape(-1, 3))
    order = np.argsort(codes)
    found = order[np.searchsorted(codes, packed, sorter=order).clip(max=len(codes) - 1)]
    others = codes[found] != packed
    index, palette = found.astype(np.uint8), [value for colour in keep for value in colour]
    if others.any():
        rest = Image.fromarray(np.asarray(page).reshape(1, -1, 3)[:, others])
        rest = rest.quantize(256 - len(keep), dither=Image.Dither.NONE)
        index[others] = np.asarray(rest)[0] + len(keep)
        palette += rest.getpalette() or []
    made = Image.fromarray(index.reshape(page.height, page.width))
    made.putpalette(palette)
    return made


def _packed(colours: np.ndarray) -> np.ndarray:
    """One integer for each of uint8 (N, 3)."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
