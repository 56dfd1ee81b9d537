"""COCO's precision from its own annotation and result lists, bit for bit that of pycocotools' COCOeval.

One thing differs: pycocotools takes an object whose id is 0 for none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from eval_detection.coco_match import IOUS, Overlaps, Things, precision_of
from eval_detection.masks import Code
from eval_detection.overlaps import common_area, pairs
from eval_detection.results import Result

_MOST = 100  # detections of an image and class that count
_CHUNK = 255  # masks that are unpacked together; pycocotools.mask.area takes no more


def coco_precision(
    content: dict[str, Any],
    results: Sequence[Result],
    images: Iterable[int],
    categories: Sequence[int],
    *,
    masks: bool = False,
    left_out: Set[int] = frozenset(),
) -> dict[str, np.ndarray]:
    """Precision of detections, by box and with ``masks`` by mask.

    Args:
        content: COCO's annotation file as JSON reads it.
        results: in these images and categories; their order decides ties.
        images: ids of the images that count.
        categories: rising ids.
        left_out: places in ``content["annotations"]`` of what is not used.

    Returns:
        ``"box"`` (and ``"mask"``) to (IoUs, recalls, categories, sizes) in [0, 1]; -1 where there is no
        object to find.
    """
    kept = set(images)
    things = [
        thing
        for place, thing in enumerate(content["annotations"])
        if thing["image_id"] in kept and place not in left_out
    ]
    ids, numbers = np.sort(np.array(list(kept), np.int64)), np.array(categories, np.int64)
    groups = _groups(things, ids, numbers)
    order = np.argsort(groups, kind="stable")
    things, groups = [things[i] for i in order.tolist()], groups[order]
    boxes = _boxes(things)
    # A training set, of which a search holds some out, need not have areas and crowds.
    areas = [a.get("area", w * h) for a, (w, h) in zip(things, boxes[:, 2:].tolist(), strict=True)]
    crowd = np.array([bool(a.get("iscrowd")) for a in things], bool)
    truth = Things(groups, np.array(areas, np.float64), crowd, np.zeros(0))

    groups = _groups(results, ids, numbers)
    scores = np.array([r["score"] for r in results], np.float64)
    order = np.lexsort((-scores, groups))
    sorted_groups = groups[order]
    order = order[np.arange(len(order)) - np.searchsorted(sorted_groups, sorted_groups) < _MOST]
    groups, scores = groups[order], scores[order]
    found_boxes = _boxes(results)[order]
    found = Things(groups, found_boxes[:, 2] * found_boxes[:, 3], np.zeros(0, bool), scores)
    overlaps = _box_overlaps(truth, boxes, found, found_boxes)
    precision = {"box": precision_of(truth, found, overlaps, len(numbers))}
    if masks:
        sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
        codes = _codes(things, sizes)
        found_codes = [results[i]["segmentation"] for i in order.tolist()]
        found = Things(groups, _areas(found_codes), np.zeros(0, bool), scores)
        overlaps = _mask_overlaps(truth, codes, found, found_codes)
        precision["mask"] = precision_of(truth, found, overlaps, len(numbers))
    return precision


def _groups(rows: Sequence[dict[str, Any]], ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N,) place of the image · categories + place of the category."""
    image = np.searchsorted(ids, np.array([r["image_id"] for r in rows], np.int64))
    category = np.searchsorted(numbers, np.array([r["category_id"] for r in rows], np.int64))
    return image * len(numbers) + category


def _boxes(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """(N, 4), x, y, width, height in px."""
    numbers = chain.from_iterable([r["bbox"] for r in rows])
    return np.fromiter(numbers, np.float64, 4 * len(rows)).reshape(-1, 4)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2], boxes[:, 2:] + boxes[:, :2]), axis=1)


def _box_overlaps(
    truth: Things, boxes: np.ndarray, found: Things, found_boxes: np.ndarray
) -> Overlaps:
    areas, boxes, found_boxes = boxes[:, 2] * boxes[:, 3], _corners(boxes), _corners(found_boxes)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for d, g in pairs(found.groups, truth.groups):
            common = common_area(found_boxes[d], boxes[g])
            yield d, g, _iou(common, found.areas[d], areas[g], truth.crowd[g])

    return _close(blocks())


def _mask_overlaps(
    truth: Things, codes: Sequence[Code], found: Things, found_codes: Sequence[Code]
) -> Overlaps:
    """As pycocotools computes them, where the boxes of the masks and their areas allow enough."""
    areas, boxes = _areas(codes), _corners(_in_chunks(rle_tools.toBbox, codes).reshape(-1, 4))
    found_boxes = _corners(_in_chunks(rle_tools.toBbox, found_codes).reshape(-1, 4))
    hopeful = []
    for d, g in pairs(found.groups, truth.groups):
        common = common_area(found_boxes[d], boxes[g])
        common = np.minimum(common, np.minimum(found.areas[d], areas[g]))
        most = _iou(common, found.areas[d], areas[g], truth.crowd[g])
        hopeful.append(d[most >= IOUS[0]])
    near = np.unique(np.concatenate([np.zeros(0, np.int64), *hopeful]))
    groups, starts, counts = np.unique(found.groups[near], return_index=True, return_counts=True)
    lows, highs = (np.searchsorted(truth.groups, groups, side) for side in ("left", "right"))
    ious, rows, crowd = [np.zeros(0)], near.tolist(), truth.crowd.tolist()
    for start, end, low, high in np.stack((starts, starts + counts, lows, highs), axis=1).tolist():
        mine = [found_codes[row] for row in rows[start:end]]
        ious.append(rle_tools.iou(mine, codes[low:high], crowd[low:high]).ravel())
    iou, parts, done = np.concatenate(ious), [], 0
    for d, g in pairs(found.groups[near], truth.groups):
        parts.append((near[d], g, iou[done : done + len(d)]))
        done += len(d)
    return _close(parts)


def _iou(common: np.ndarray, area: np.ndarray, other: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Over the union, with a crowd over the detection; 0 where nothing is common."""
    whole = np.where(crowd, area, area + other - common)
    return np.divide(common, whole, out=np.zeros_like(common), where=common > 0)


def _close(blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Overlaps:
    """The pairs that reach the lowest threshold, of blocks (detections, objects, IoUs)."""
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    kept = [[column[block[2] >= IOUS[0]] for column in block] for block in blocks]
    return Overlaps(*(np.concatenate(columns) for columns in zip(none, *kept, strict=True)))


def _areas(codes: Sequence[Code]) -> np.ndarray:
    return _in_chunks(rle_tools.area, codes)


def _in_chunks(function: Callable[[Any], Any], codes: Sequence[Code]) -> np.ndarray:
    """``function`` of codes, float64; unpacked they take much more space, so some at a time."""
    parts = [function(codes[i : i + _CHUNK]) for i in range(0, len(codes), _CHUNK)]
    return np.concatenate([np.zeros(0), *(np.asarray(p, np.float64).ravel() for p in parts)])


def _codes(things: Sequence[dict[str, Any]], sizes: dict[int, tuple[int, int]]) -> list[Code]:
    """Compressed run lengths of annotated masks: polygons, run lengths, or these already."""
    codes: list[Code] = []
    for thing in things:
        mask, (height, width) = thing["segmentation"], sizes[thing["image_id"]]
        if isinstance(mask, list):
            parts = rle_tools.frPyObjects(mask, height, width)
            mask = parts[0] if len(parts) == 1 else rle_tools.merge(parts)
        elif isinstance(mask["counts"], list):
            mask = rle_tools.frPyObjects(mask, height, width)
        codes.append(mask)
    return codes
