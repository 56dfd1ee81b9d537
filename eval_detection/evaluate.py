"""``siambench detect``: train, find objects in the test set, and measure average precision."""

import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from eval_detection.boxes import clip, nonempty
from eval_detection.c4 import C4, Detections
from eval_detection.coco import open_coco
from eval_detection.config import DetectConfig, check_config
from eval_detection.loader import EvalImages, to_batch
from eval_detection.masks import paste
from eval_detection.samples import DetectionData, Sample
from eval_detection.train import train
from eval_detection.voc import open_voc
from eval_detection.voc_ap import IOUS, RULES, Truth, average_precision, judge
from siambench.backbone import Backbone, BackboneMeta
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.files import write_text
from siambench.progress import bar
from siambench.record import Metric, Record

_MOST_TEST_IMAGES = 16  # in a batch; how many does not change what is found
Result = dict[str, Any]  # one detection as COCO's result files have it


def run(config: DetectConfig) -> list[Record]:
    """Run the trials that have no record yet, print AP, AP50 and AP75, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        for metric in record.metrics:
            if metric.name in ("box_AP", "mask_AP"):
                kind, rule = metric.name.split("_")[0], metric.params["rule"]
                values = [record.metric(f"{kind}_{m}", rule=rule) for m in ("AP", "AP50", "AP75")]
                shown = "  ".join(
                    f"{m} {v:.2f}" for m, v in zip(("AP", "AP50", "AP75"), values, strict=True)
                )
                name = record.backbone["name"]
                print(f"{record.benchmark} {name} #{record.trial}: {kind} {rule}  {shown}")
    return records


def open_data(config: DetectConfig) -> DetectionData:
    """Check the protocol, then read and check the data.

    Raises:
        UserError: either is wrong.
    """
    check_config(config)
    return open_voc(config) if config.format == "voc" else open_coco(config)


def evaluate(
    backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job
) -> list[Metric]:
    """Train on ``data.train``, test on ``data.test``.

    Predictions, the curve and, until the record is written, the checkpoint stay in ``job.folder``.
    """
    model = train(backbone, data, config, job)
    results = predict(model, data, config, job, backbone.meta)
    write_text(job.folder / "predictions.json", json.dumps(results))
    if data.test_json is None:
        return voc_metrics(data, results)
    return coco_metrics(data, results, masks=config.mask)


@torch.inference_mode()
def predict(
    model: C4, data: DetectionData, config: DetectConfig, job: Job, meta: BackboneMeta
) -> list[Result]:
    """Detections in every test image, in px of the original.

    Only images of one size share a batch: without padding, a batch finds what single images do.
    """
    images = EvalImages(data.test, config)
    # Without gradients twice the proposals of a training batch fit where that one did.
    fitting = 2 * config.batch_size * config.rois_per_image // max(config.rpn_post_nms_test, 1)
    batches = images.batches(min(max(fitting, 1), _MOST_TEST_IMAGES))
    loader = DataLoader(images, batch_sampler=batches, num_workers=job.workers, collate_fn=list)
    results: dict[int, list[Result]] = {}
    with bar(f"{job.title}: test images", len(data.test)) as progress:
        for indices, tensors in zip(batches, loader, strict=True):
            batch, sizes = to_batch(tensors, meta.mean, meta.std, job.device)
            for index, found in zip(indices, model.detect(batch, sizes), strict=True):
                sample = data.test[index]
                results[index] = _as_results(found, sizes[0], sample, data.category_ids)
            progress.advance(len(indices))
    return [row for index in sorted(results) for row in results[index]]


def _as_results(
    found: Detections, size: tuple[int, int], sample: Sample, category_ids: Sequence[int]
) -> list[Result]:
    """Boxes scaled from the resized image back to the original, masks pasted into it."""
    height, width = sample.height, sample.width
    scale = found.boxes.new_tensor([width / size[1], height / size[0]] * 2)
    boxes = clip(found.boxes * scale, height, width)
    keep = nonempty(boxes)
    boxes = boxes[keep].cpu()
    x0, y0, x1, y1 = boxes.unbind(1)
    rows = torch.stack((x0, y0, x1 - x0, y1 - y0), dim=1).tolist()
    scores, labels = found.scores[keep].tolist(), found.labels[keep].tolist()
    results: list[Result] = [
        {"image_id": sample.id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(rows, scores, labels, strict=True)
    ]
    if found.masks is not None:
        codes = paste(found.masks[keep], boxes, height, width)
        for result, code in zip(results, codes, strict=True):
            result["segmentation"] = code
    return results


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


BENCHMARK: Benchmark[DetectConfig, DetectionData] = Benchmark(
    verb="detect",
    version=1,
    engine=lambda config: "torchvision",
    open_data=open_data,
    evaluate=evaluate,
)
