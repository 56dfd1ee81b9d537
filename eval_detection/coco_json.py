"""COCO's annotation files in memory: whole entries, polygons as arrays, and what is wrong with them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from eval_detection.masks import Code, Polygons
from siambench.problems import Problems

PARTS = ("images", "annotations", "categories")
Kinds = dict[str, Any]  # what a field's value must be an instance of
_MOST_ID = 2**53  # what JSON's numbers hold everywhere
_FAR = 1e9  # px; no box or polygon that is meant has such a number


def load(path: Path, masks: bool, problems: Problems) -> dict[str, list[Any]]:
    """The three lists of ``path``; notes what is no JSON, absent or empty.

    Segmentations are dropped, or with ``masks`` become lists of arrays at once: as Python's numbers
    they would take four times the space.
    """
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"),
            object_hook=_compact if masks else _without_segmentation,
        )
    except (ValueError, RecursionError) as error:
        problems.file(str(path), f"is not JSON ({error}); unpack it again")
        return {part: [] for part in PARTS}
    if not isinstance(content, dict):
        kind = type(content).__name__
        problems.file(
            str(path), f"holds a {kind}, not images, annotations and categories (a result file?)"
        )
        return {part: [] for part in PARTS}
    lists = {p: content[p] if isinstance(content.get(p), list) else [] for p in PARTS}
    if absent := [part for part, entries in lists.items() if not entries]:
        problems.file(str(path), f"has no {', no '.join(absent)}")
    return lists


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        entry["segmentation"] = [_as_array(points) for points in polygons]
    return entry


def _as_array(points: Any) -> Any:
    """A list of sensible numbers as float64 (n,), which keeps every digit; anything else as it is."""
    try:
        return np.array(points, np.float64) if abs(sum(points)) < _FAR else points
    except (TypeError, ValueError, OverflowError):
        return points


def lacks(entry: Any, kinds: Kinds) -> str:
    """Which fields of ``kinds`` are absent or of another kind; ``""``: none."""
    if not isinstance(entry, dict):
        return "is not an object"
    for field, kind in kinds.items():
        if not isinstance(entry.get(field), kind):
            break
    else:
        if abs(entry["id"]) >= _MOST_ID:
            return "id is beyond 2^53"
        area = entry["area"] if "area" in kinds else 0
        return "" if math.isfinite(area) else f"area is {area}"
    wrong = [k for k, kind in kinds.items() if not isinstance(entry.get(k), kind)]
    return ", ".join(f"{k} is {str(entry[k])[:40]!r}" if k in entry else f"no {k}" for k in wrong)


def named(entry: Any, place: int) -> str:
    """An entry's id, or where in its list it is."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return str(number) if isinstance(number, int) else f"number {place + 1}"


def four_numbers(box: list[Any]) -> bool:
    """Whether ``box`` is four finite numbers."""
    if len(box) != 4:
        return False
    try:
        return all(-_FAR < value < _FAR for value in box)
    except TypeError:
        return False


def as_mask(segmentation: Any, height: int, width: int) -> tuple[Polygons | Code, str]:
    """A mask as it is kept, and what is wrong with it (``""``: nothing).

    Args:
        segmentation: as :func:`load` leaves it: a list of polygons, or a run-length code.
        height, width: of the image in px; 0 where they are not known.
    """
    if isinstance(segmentation, dict):
        return _as_code(segmentation, height, width)
    for points in segmentation:
        if not isinstance(points, np.ndarray):
            return [], "a polygon is not a list of numbers"
        if len(points) < 6 or len(points) % 2:
            odd = "an odd count of numbers" if len(points) % 2 else "fewer than three points"
            return [], f"a polygon has {odd}"
    return segmentation, "" if segmentation else "no polygon"


def _as_code(code: dict[str, Any], height: int, width: int) -> tuple[Code, str]:
    """The compressed code of a run-length mask, whose runs must be those of its image."""
    counts = code.get("counts")
    if not isinstance(counts, list | str):
        return {}, "a run-length mask without counts"
    if not height:
        return {}, ""
    if code.get("size") != [height, width]:
        return {}, f"a run-length mask of another size than its image ({height} × {width} px)"
    try:
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        if min(runs) < 0 or sum(runs) != height * width:
            raise ValueError
        return code if isinstance(counts, str) else rle_tools.frPyObjects(code, height, width), ""
    except (TypeError, ValueError, OverflowError):
        return {}, "a run-length mask whose counts do not add up to its size"


def run_lengths(counts: str) -> list[int]:
    """The runs of COCO's compressed code: five bits a letter, from the third on as differences.

    pycocotools does not check a code before it decodes it, and fills what is missing with garbage.

    Raises:
        ValueError: a letter that none of its has.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts.encode("ascii"):
        part = letter - 48
        if not 0 <= part < 64:
            raise ValueError(f"letter {letter}")
        value |= (part & 31) << shift
        shift += 5
        if not part & 32:  # the last letter of this number
            value -= (part & 16) >> 4 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs
