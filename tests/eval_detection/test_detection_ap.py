"""VOC's average precision against brute force; COCO's through pycocotools on known detections."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data
from eval_detection.metrics import coco_metrics, voc_metrics
from eval_detection.voc_ap import IOUS, Truth, average_precision, judge


def brute_force_ap(hits: list[int], positives: int, rule: str) -> float:
    """Straight from the devkit's text, point by point."""
    points = [(sum(hits[:n]) / positives, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    best = lambda recall: max((p for r, p in points if r >= recall), default=0.0)  # noqa: E731
    if rule == "11-point":
        return sum(best(t) for t in np.arange(0, 1.1, 0.1)) / 11
    area, last = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - last) * best(recall)
        last = recall
    return area


@pytest.mark.parametrize("rule", ["11-point", "all-points"])
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_brute_forces(rule: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits = (rng.random(60) < np.linspace(0.9, 0.1, 60)).astype(int)
    positives = int(hits.sum()) + seed
    expected = brute_force_ap(hits.tolist(), positives, rule)
    assert average_precision(hits, positives, rule) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected < 1


def test_average_precision_at_the_ends() -> None:
    for rule in ("11-point", "all-points"):
        assert average_precision(np.array([], int), 3, rule) == 0
        assert average_precision(np.array([1, 1, 1]), 3, rule) == 1
        assert average_precision(np.array([0, 0]), 3, rule) == 0
    # recall 0.5 at precision 1, nothing after: 6 of 11 points, half of the area
    assert average_precision(np.array([1]), 2, "11-point") == pytest.approx(6 / 11)
    assert average_precision(np.array([1]), 2, "all-points") == pytest.approx(0.5)


def test_judging_takes_each_object_once_and_skips_difficult_ones() -> None:
    truth = Truth(np.array([[1.0, 1, 10, 10], [21, 1, 30, 10]]), np.array([False, True]))
    boxes = np.array([[1.0, 1, 10, 10], [1, 1, 10, 9], [21, 1, 30, 10], [50, 50, 60, 60]])
    scores = np.array([0.5, 0.9, 0.8, 0.7])
    hits = judge([truth], np.zeros(4, int), boxes, scores, ious=[0.5, 0.95])
    assert hits[0].tolist() == [1, 0, 0]  # 0.9 right, 0.8 on the difficult one, 0.7 and 0.5 wrong
    assert hits[1].tolist() == [0, 0, 1]  # at 0.95 the first box (IoU 0.9) misses
    assert hits[0].dtype == np.int64


def test_iou_counts_pixels_and_must_pass_the_threshold() -> None:
    truth = Truth(np.array([[1.0, 1, 10, 10]]), np.array([False]))
    half = np.array([[1.0, 1, 10, 5]])  # 50 of 100 pixels: exactly 0.5
    assert judge([truth], np.zeros(1, int), half, np.ones(1), [0.5])[0].tolist() == [0]
    assert judge([truth], np.zeros(1, int), half, np.ones(1), [0.49])[0].tolist() == [1]


def test_equal_scores_keep_their_order() -> None:
    truth = Truth(np.array([[1.0, 1, 10, 10]]), np.array([False]))
    boxes = np.array([[1.0, 1, 10, 10], [40, 40, 50, 50]])
    first = judge([truth], np.zeros(2, int), boxes, np.ones(2), [0.5])[0]
    assert first.tolist() == [1, 0]


def voc_config(scenes: Path, **changes) -> DetectConfig:
    return DetectConfig(backbone="", data=str(scenes), train_sets=["2007/trainval"], **changes)


def coco_config(scenes: Path, **changes) -> DetectConfig:
    fields = {"train_sets": ["train2017"], "test_set": "val2017", "mask": True, **changes}
    return DetectConfig(backbone="", data=str(scenes / "coco"), format="coco", **fields)


def test_the_truth_scores_100_on_voc(scenes: Path) -> None:
    data = open_data(voc_config(scenes))
    results = []
    for s in data.test:
        for (x0, y0, x1, y1), label in zip(s.boxes.tolist(), s.labels, strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            category = data.category_ids[label]
            results.append({"image_id": s.id, "category_id": category, "bbox": box, "score": 1.0})
    metrics = voc_metrics(data, results)
    assert {m.value for m in metrics} == {100.0}
    assert {m.name for m in metrics} == {"box_AP", "box_AP50", "box_AP75", "box_AP_class"}
    assert {m.params["rule"] for m in metrics} == {"11-point", "all-points"}
    shifted = [{**r, "bbox": [r["bbox"][0] + 1, *r["bbox"][1:]]} for r in results]
    values = {(m.name, m.params["rule"]): m.value for m in voc_metrics(data, shifted)}
    assert values["box_AP50", "11-point"] == 100
    assert 20 < values["box_AP", "11-point"] < 100
    assert {m.value for m in voc_metrics(data, [])} == {0.0}


def test_a_class_absent_from_the_test_set_is_left_out(scenes: Path) -> None:
    data = open_data(voc_config(scenes))
    gone = data.classes[int(data.test[0].labels[0])]
    test = [s for s in data.test if data.classes.index(gone) not in s.labels]
    fewer = type(data)(data.classes, data.category_ids, data.train, test, data.test_json, data.info)
    named = {m.params.get("class") for m in voc_metrics(fewer, [])}
    assert gone not in named
    assert len(named) > 2


def test_the_truth_scores_100_on_coco(scenes: Path) -> None:
    data = open_data(coco_config(scenes))
    assert data.test_json is not None
    content = json.loads(data.test_json.read_text())
    results = []
    for thing in content["annotations"]:
        if not thing["iscrowd"]:
            row = {k: thing[k] for k in ("image_id", "category_id", "bbox")}
            image = next(i for i in content["images"] if i["id"] == thing["image_id"])
            code = _code(thing["segmentation"], image["height"], image["width"])
            results.append({**row, "score": 0.9, "segmentation": code})
    metrics = coco_metrics(data, results, masks=True)
    assert all(m.value == pytest.approx(100) for m in metrics)
    names = {m.name for m in metrics}
    assert {"box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50", "box_AP_class"} <= names
    boxes_only = coco_metrics(data, results, masks=False)
    assert {m.name.split("_")[0] for m in boxes_only} == {"box"}
    assert {m.value for m in coco_metrics(data, [], masks=True)} == {0.0}


def _code(segmentation, height: int, width: int):
    from pycocotools import mask as rle_tools

    code = rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    return {"size": code["size"], "counts": code["counts"].decode()}


def test_iou_thresholds_are_cocos() -> None:
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
