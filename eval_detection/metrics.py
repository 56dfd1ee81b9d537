"""Average precision of a run's detections, by the rules of VOC or of COCO."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval_detection.coco_ap import coco_precision
from eval_detection.coco_match import RECALLS
from eval_detection.results import Result
from eval_detection.samples import DetectionData
from eval_detection.voc_ap import IOUS, RULES, Truth, average_precision, judge, precision_at
from siambench.record import Metric

_HALF, _THREE_QUARTERS = IOUS.index(0.5), IOUS.index(0.75)
_SIZES = ("", "s", "m", "l")  # as in a metric's name, in coco_match's order


@dataclass(frozen=True)
class Measured:
    """What the detections of one run are worth.

    Attributes:
        metrics: in %.
        curves: what ``precision.json`` holds: ``recall`` (101 values), ``iou`` ([0.5, 0.75]) and
            ``precision``: ``box`` (and ``mask``) to class to one list per IoU, of the best precision
            in [0, 1] from each recall on. Classes without an object to find are left out.
    """

    metrics: list[Metric]
    curves: dict[str, Any]


def measure(data: DetectionData, results: Sequence[Result], *, masks: bool) -> Measured:
    """What ``results``, detections in ``data.test``, are worth."""
    if data.test_json is None:
        metrics, curves = _voc(data, results)
    else:
        metrics, curves = _coco(data, results, masks)
    recall = RECALLS.round(2).tolist()
    return Measured(metrics, {"recall": recall, "iou": [0.5, 0.75], "precision": curves})


Curves = dict[str, dict[str, list[list[float]]]]


def _voc(data: DetectionData, results: Sequence[Result]) -> tuple[list[Metric], Curves]:
    """AP, AP50 and AP75 by both of VOC's rules, and AP per class.

    AP is the mean over classes and the IoU thresholds 0.5 to 0.95. Difficult objects count neither
    way; a class that the test set does not hold is left out of the means.
    """
    number = {s.id: i for i, s in enumerate(data.test)}
    images = np.array([number[r["image_id"]] for r in results], int)
    labels = np.array([r["category_id"] for r in results], int)
    scores = np.array([r["score"] for r in results], float)
    boxes = np.array([r["bbox"] for r in results], float).reshape(-1, 4)
    # From x, y, width, height to 1-based inclusive corners: the inverse of reading.
    boxes = np.concatenate((boxes[:, :2] + 1, boxes[:, :2] + boxes[:, 2:]), axis=1)
    truth_images = np.repeat(np.arange(len(data.test)), [len(s.labels) for s in data.test])
    truth_labels = np.concatenate([s.labels for s in data.test])
    truth_boxes = np.concatenate([s.boxes for s in data.test]).astype(float)
    truth_boxes[:, :2] += 1
    difficult = np.concatenate([s.difficult for s in data.test])
    table: dict[str, dict[str, list[float]]] = {rule: {} for rule in RULES}
    curves = {}
    for label, (name, category) in enumerate(zip(data.classes, data.category_ids, strict=True)):
        there, mine = truth_labels == label, labels == category
        truth = Truth(truth_images[there], truth_boxes[there], difficult[there])
        positives = int((~truth.difficult).sum())
        if positives == 0:
            continue
        hits = judge(truth, images[mine], boxes[mine], scores[mine])
        for rule in RULES:
            table[rule][name] = [100 * average_precision(h, positives, rule) for h in hits]
        curves[name] = [
            _short(precision_at(RECALLS, hits[iou], positives)) for iou in (_HALF, _THREE_QUARTERS)
        ]
    metrics = []
    for rule, rows in table.items():
        mean = np.mean(list(rows.values()), axis=0)
        params = {"rule": rule}
        metrics += [
            Metric("box_AP", float(mean.mean()), params=params),
            Metric("box_AP50", float(mean[_HALF]), params=params),
            Metric("box_AP75", float(mean[_THREE_QUARTERS]), params=params),
        ]
        metrics += [
            Metric("box_AP_class", float(np.mean(row)), params={"class": name, **params})
            for name, row in rows.items()
        ]
    return metrics, {"box": curves}


def _coco(
    data: DetectionData, results: Sequence[Result], masks: bool
) -> tuple[list[Metric], Curves]:
    """Box (and mask) AP, AP50, AP75, AP by size and per class.

    A size range that the test set has no object of gives no metric.
    """
    assert data.test_json is not None
    precision = coco_precision(
        json.loads(data.test_json.read_text(encoding="utf-8-sig")),
        results,
        [int(s.id) for s in data.test],
        data.category_ids,
        masks=masks,
        left_out=data.test_left_out,
    )
    metrics: list[Metric] = []
    curves: Curves = {}
    for kind, array in precision.items():
        whole = array[..., 0]
        parts = {"AP": whole, "AP50": whole[_HALF], "AP75": whole[_THREE_QUARTERS]}
        parts |= {f"AP{size}": array[..., i] for i, size in enumerate(_SIZES) if size}
        rule = {"rule": "101-point"}
        for name, part in parts.items():
            if (part > -1).any():
                value = 100 * float(part[part > -1].mean())
                metrics.append(Metric(f"{kind}_{name}", value, split="val", params=rule))
        curves[kind] = {}
        for label, name in enumerate(data.classes):
            mine = whole[:, :, label]
            if (mine > -1).all():
                value, params = 100 * float(mine.mean()), {"class": name, **rule}
                metrics.append(Metric(f"{kind}_AP_class", value, split="val", params=params))
                curves[kind][name] = [_short(mine[_HALF]), _short(mine[_THREE_QUARTERS])]
    return metrics, curves


def _short(values: np.ndarray) -> list[float]:
    """Six digits are enough to draw, and a third of the file."""
    rounded: list[float] = values.round(6).tolist()
    return rounded
