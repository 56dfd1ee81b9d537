"""Average precision of a run's detections, by the rules of VOC or of COCO."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval_detection.results import Result
from eval_detection.samples import DetectionData, Sample
from eval_detection.voc_ap import IOUS, RULES, Truth, average_precision, judge
from siambench.record import Metric


def metrics_of(data: DetectionData, results: Sequence[Result], *, masks: bool) -> list[Metric]:
    """All metrics of ``results`` on ``data.test``, in %."""
    if data.test_json is None:
        return voc_metrics(data, results)
    return coco_metrics(data, results, masks=masks)


def voc_metrics(data: DetectionData, results: Sequence[Result]) -> list[Metric]:
    """AP, AP50 and AP75 by both of VOC's rules, and AP per class, in %.

    AP is the mean over classes and the IoU thresholds 0.5 to 0.95. Difficult objects count neither
    way; a class that the test set does not hold is left out of the means.
    """
    table: dict[str, dict[str, list[float]]] = {rule: {} for rule in RULES}
    number = {s.id: i for i, s in enumerate(data.test)}
    for label, (name, category) in enumerate(zip(data.classes, data.category_ids, strict=True)):
        truths = [_truth(s, label) for s in data.test]
        positives = sum(int((~t.difficult).sum()) for t in truths)
        if positives == 0:
            continue
        mine = [r for r in results if r["category_id"] == category]
        boxes = np.array([r["bbox"] for r in mine], float).reshape(-1, 4)
        # From x, y, width, height to 1-based inclusive corners: the inverse of reading.
        boxes = np.concatenate((boxes[:, :2] + 1, boxes[:, :2] + boxes[:, 2:]), axis=1)
        images = np.array([number[r["image_id"]] for r in mine], int)
        hits = judge(truths, images, boxes, np.array([r["score"] for r in mine]))
        for rule in RULES:
            table[rule][name] = [100 * average_precision(h, positives, rule) for h in hits]
    metrics = []
    for rule, rows in table.items():
        mean = np.mean(list(rows.values()), axis=0)
        params = {"rule": rule}
        metrics += [
            Metric("box_AP", float(mean.mean()), params=params),
            Metric("box_AP50", float(mean[IOUS.index(0.5)]), params=params),
            Metric("box_AP75", float(mean[IOUS.index(0.75)]), params=params),
        ]
        metrics += [
            Metric("box_AP_class", float(np.mean(row)), params={"class": name, **params})
            for name, row in rows.items()
        ]
    return metrics


def _truth(sample: Sample, label: int) -> Truth:
    mine = sample.labels == label
    boxes = sample.boxes[mine].astype(float) + np.array([1, 1, 0, 0])
    return Truth(boxes, sample.difficult[mine])


def coco_metrics(data: DetectionData, results: Sequence[Result], *, masks: bool) -> list[Metric]:
    """pycocotools' box (and mask) AP, AP50, AP75, AP by size and per class, in %.

    A size range that the test set has no object of gives no metric.
    """
    from pycocotools.coco import COCO

    assert data.test_json is not None
    metrics = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO(str(data.test_json))
    for kind, iou_type in (("box", "bbox"), ("mask", "segm"))[: 2 if masks else 1]:
        metrics += _coco_metrics(truth, data, results, kind, iou_type)
    return metrics


def _coco_metrics(
    truth: Any, data: DetectionData, results: Sequence[Result], kind: str, iou_type: str
) -> list[Metric]:
    from pycocotools.cocoeval import COCOeval

    rule = {"rule": "101-point"}
    if not results:  # pycocotools cannot load an empty list
        names = ("AP", "AP50", "AP75")
        return [Metric(f"{kind}_{n}", 0.0, split="val", params=rule) for n in names]
    with contextlib.redirect_stdout(io.StringIO()):
        # With a bbox in place pycocotools would take its area for the mask's.
        left_out = "bbox" if kind == "mask" else "segmentation"
        rows = [{k: v for k, v in r.items() if k != left_out} for r in results]
        detections = truth.loadRes(rows)
        judged = COCOeval(truth, detections, iou_type)
        judged.params.imgIds = [s.id for s in data.test]
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    metrics = [
        Metric(f"{kind}_{n}", 100 * float(v), split="val", params=rule)
        for n, v in zip(names, judged.stats[: len(names)], strict=True)
        if v >= 0
    ]
    precision = judged.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all sizes, most dets
    for index, name in enumerate(data.classes):
        mine = precision[:, :, index]
        if (mine > -1).any():
            value = 100 * float(mine[mine > -1].mean())
            metrics.append(
                Metric(f"{kind}_AP_class", value, split="val", params={"class": name, **rule})
            )
    return metrics
