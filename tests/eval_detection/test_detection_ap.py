"""Average precision: VOC's rules against brute force, COCO's numbers against pycocotools."""

import contextlib
import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_detections import CATEGORIES, made_coco

from eval_detection import overlaps
from eval_detection.config import DetectConfig
from eval_detection.evaluate import evaluate, open_data
from eval_detection.metrics import measure
from eval_detection.samples import DetectionData, as_sample
from eval_detection.voc_ap import IOUS, Truth, average_precision, judge, precision_at
from siambench.evaluation import Job
from siambench.record import DatasetInfo


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


def one_image(boxes, difficult) -> Truth:
    boxes = np.array(boxes, float)
    return Truth(np.zeros(len(boxes), int), boxes, np.array(difficult))


def test_judging_takes_each_object_once_and_skips_difficult_ones() -> None:
    truth = one_image([[1, 1, 10, 10], [21, 1, 30, 10]], [False, True])
    boxes = np.array([[1.0, 1, 10, 10], [1, 1, 10, 9], [21, 1, 30, 10], [50, 50, 60, 60]])
    scores = np.array([0.5, 0.9, 0.8, 0.7])
    hits = judge(truth, np.zeros(4, int), boxes, scores, ious=[0.5, 0.95])
    assert hits[0].tolist() == [1, 0, 0]  # 0.9 right, 0.8 on the difficult one, 0.7 and 0.5 wrong
    assert hits[1].tolist() == [0, 0, 1]  # at 0.95 the first box (IoU 0.9) misses
    assert hits[0].dtype == np.int64


def test_iou_counts_pixels_and_must_pass_the_threshold() -> None:
    truth = one_image([[1, 1, 10, 10]], [False])
    half = np.array([[1.0, 1, 10, 5]])  # 50 of 100 pixels: exactly 0.5
    assert judge(truth, np.zeros(1, int), half, np.ones(1), [0.5])[0].tolist() == [0]
    assert judge(truth, np.zeros(1, int), half, np.ones(1), [0.49])[0].tolist() == [1]


def test_equal_scores_keep_their_order() -> None:
    truth = one_image([[1, 1, 10, 10]], [False])
    boxes = np.array([[1.0, 1, 10, 10], [40, 40, 50, 50]])
    first = judge(truth, np.zeros(2, int), boxes, np.ones(2), [0.5])[0]
    assert first.tolist() == [1, 0]


def brute_force_hits(truth: Truth, images, boxes, scores, threshold: float) -> list[int]:
    """The devkit's loop over the detections."""
    hits, taken = [], set()
    for d in sorted(range(len(scores)), key=lambda d: -scores[d]):
        best, overlap = -1, -1.0
        for g in np.flatnonzero(truth.images == images[d]):
            x0, y0, x1, y1 = boxes[d]
            u0, v0, u1, v1 = truth.boxes[g]
            width, height = min(x1, u1) - max(x0, u0) + 1, min(y1, v1) - max(y0, v0) + 1
            common = max(width, 0) * max(height, 0)
            union = (x1 - x0 + 1) * (y1 - y0 + 1) + (u1 - u0 + 1) * (v1 - v0 + 1) - common
            if common / union > overlap:
                best, overlap = g, common / union
        if overlap <= threshold:
            hits.append(0)
        elif not truth.difficult[best]:
            hits.append(int(best not in taken))
            taken.add(best)
    return hits


@pytest.mark.parametrize("block", [1 << 20, 5])
@pytest.mark.parametrize("seed", range(3))
def test_judging_is_brute_forces(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlaps, "_MOST", block)
    rng = np.random.default_rng(seed)
    images = np.sort(rng.integers(0, 9, 30))
    corner = rng.integers(1, 40, (30, 2))
    boxes = np.concatenate((corner, corner + rng.integers(8, 30, (30, 2))), axis=1).astype(float)
    boxes[1::6], images[1::6] = boxes[::6], images[::6]  # the same object twice
    images.sort()
    truth = Truth(images, boxes, rng.random(30) < 0.3)
    which = rng.integers(0, 30, 150)
    found = boxes[which] + rng.integers(-3, 4, (150, 4))
    where = np.where(rng.random(150) < 0.9, images[which], rng.integers(0, 12, 150))
    scores = rng.random(150).round(1)  # ties
    hits = judge(truth, where, found, scores)
    for hit, threshold in zip(hits, IOUS, strict=True):
        assert hit.tolist() == brute_force_hits(truth, where, found, scores, threshold)
    assert 10 < hits[0].sum() < len(hits[0]) < 150
    assert [h.tolist() for h in judge(truth, where[:0], found[:0], scores[:0])] == [[]] * 10
    nothing = Truth(images[:0], boxes[:0], truth.difficult[:0])
    assert not judge(nothing, where, found, scores)[0].any()


@pytest.mark.parametrize("seed", range(3))
def test_precision_at_is_the_best_from_each_recall_on(seed: int) -> None:
    hits = (np.random.default_rng(seed).random(40) < 0.6).astype(int)
    positives = int(hits.sum()) + 4
    points = [(sum(hits[:n]) / positives, sum(hits[:n]) / n) for n in range(1, 41)]
    recalls = np.linspace(0, 1, 101)
    expected = [max((p for r, p in points if r >= t), default=0.0) for t in recalls]
    found = precision_at(recalls, hits, positives)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[-1] == 0 < found[0]


def voc_config(scenes: Path, **changes) -> DetectConfig:
    return DetectConfig(backbone="", data=str(scenes), train_sets=["2007/trainval"], **changes)


def coco_config(scenes: Path, **changes) -> DetectConfig:
    fields = {"train_sets": ["train2017"], "test_set": "val2017", "mask": True, **changes}
    return DetectConfig(backbone="", data=str(scenes / "coco"), format="coco", **fields)


def truth_of(data: DetectionData) -> list[dict]:
    """Every object as a sure detection."""
    return [
        {
            "image_id": s.id,
            "category_id": data.category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": 1.0,
        }
        for s in data.test
        for (x0, y0, x1, y1), label in zip(s.boxes.tolist(), s.labels, strict=True)
    ]


def test_the_truth_scores_100_on_voc(scenes: Path) -> None:
    data = open_data(voc_config(scenes))
    results = truth_of(data)
    measured = measure(data, results, masks=False)
    assert {m.value for m in measured.metrics} == {100.0}
    assert {m.name for m in measured.metrics} == {"box_AP", "box_AP50", "box_AP75", "box_AP_class"}
    assert {m.params["rule"] for m in measured.metrics} == {"11-point", "all-points"}
    curves = measured.curves["precision"]["box"]
    assert set(curves) == {m.params["class"] for m in measured.metrics if "class" in m.params}
    assert all(curve == [[1.0] * 101] * 2 for curve in curves.values())
    shifted = [{**r, "bbox": [r["bbox"][0] + 1, *r["bbox"][1:]]} for r in results]
    metrics = measure(data, shifted, masks=False).metrics
    values = {(m.name, m.params["rule"]): m.value for m in metrics}
    assert values["box_AP50", "11-point"] == 100
    assert 20 < values["box_AP", "11-point"] < 100
    nothing = measure(data, [], masks=False)
    assert {m.value for m in nothing.metrics} == {0.0}
    assert nothing.curves["precision"]["box"].keys() == curves.keys()


def test_voc_curves_are_those_of_the_classes(scenes: Path) -> None:
    data = open_data(voc_config(scenes))
    results = truth_of(data)
    one, other = data.category_ids[:2]
    # of the first class half is found; of the second all, after as many wrong boxes with higher scores
    easy = [d for s in data.test for d in (~s.difficult).tolist()]
    sure = [r for r, kept in zip(results, easy, strict=True) if kept]
    mine = [r for r in sure if r["category_id"] == one]
    left = [r for r in sure if r["category_id"] == other]
    wrong = [{**r, "bbox": [0, 0, 1, 1], "score": 2.0} for r in left]
    curves = measure(data, [*mine[::2], *left, *wrong], masks=False).curves
    recall = np.array(curves["recall"])
    assert curves["iou"] == [0.5, 0.75]
    np.testing.assert_allclose(recall, np.linspace(0, 1, 101), atol=1e-12)
    box = curves["precision"]["box"]
    part = np.count_nonzero(recall <= len(mine[::2]) / len(mine))
    assert 50 <= part < 70
    assert box[data.classes[0]] == [[1.0] * part + [0.0] * (101 - part)] * 2
    assert box[data.classes[1]] == [[0.5] * 101] * 2


def test_an_evaluation_leaves_its_curves(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = voc_config(scenes)
    data = open_data(config)
    results = truth_of(data)
    monkeypatch.setattr("eval_detection.evaluate.detect", lambda *_: results)
    job = Job(0, 0, torch.device("cpu"), 0, tmp_path, "key", "title")
    metrics = evaluate(None, data, config, job)  # type: ignore[arg-type]
    measured = measure(data, results, masks=False)
    assert json.loads((tmp_path / "precision.json").read_text()) == measured.curves
    assert [m for m in metrics if m.name.startswith("box")] == measured.metrics


def test_a_class_absent_from_the_test_set_is_left_out(scenes: Path) -> None:
    data = open_data(voc_config(scenes))
    gone = data.classes[int(data.test[0].labels[0])]
    test = [s for s in data.test if data.classes.index(gone) not in s.labels]
    measured = measure(replace(data, test=test), [], masks=False)
    named = {m.params.get("class") for m in measured.metrics}
    assert gone not in named
    assert len(named) > 2
    assert gone not in measured.curves["precision"]["box"]


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
    measured = measure(data, results, masks=True)
    assert all(m.value == pytest.approx(100) for m in measured.metrics)
    names = {m.name for m in measured.metrics}
    assert {"box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50", "box_AP_class"} <= names
    assert set(measured.curves["precision"]) == {"box", "mask"}
    boxes_only = measure(data, results, masks=False)
    assert {m.name.split("_")[0] for m in boxes_only.metrics} == {"box"}
    assert set(boxes_only.curves["precision"]) == {"box"}
    nothing = measure(data, [], masks=True)
    assert {m.value for m in nothing.metrics} == {0.0}
    assert {m.name for m in nothing.metrics} == names


def made_data(folder: Path, seed: int) -> tuple[DetectionData, dict, list[dict]]:
    """Data whose test set is :func:`made_coco`'s; there are no pictures."""
    content, results = made_coco(seed)
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    test = [as_sample(path, i["id"], i["height"], i["width"], [], []) for i in content["images"]]
    names = [c["name"] for c in content["categories"]]
    info = DatasetInfo("made", "", {})
    return DetectionData(names, CATEGORIES, [], test, info, path, path), content, results


def test_coco_metrics_are_pycocotools(tmp_path: Path) -> None:
    data, content, results = made_data(tmp_path, seed=7)
    measured = measure(data, results, masks=True)
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        judged = summarized(content, results, iou_type)
        values = {m.name: m.value for m in measured.metrics if m.name != f"{kind}_AP_class"}
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        for name, expected in zip(names, judged.stats[:6], strict=True):
            assert values[f"{kind}_{name}"] == pytest.approx(100 * expected, abs=1e-9)
        assert len({round(values[f"{kind}_{name}"], 3) for name in names}) == 6
        precision = judged.eval["precision"][:, :, :, 0, -1]
        classes = {
            m.params["class"]: m.value for m in measured.metrics if m.name == f"{kind}_AP_class"
        }
        assert list(classes) == data.classes[:-1]
        for label, name in enumerate(classes):
            assert classes[name] == pytest.approx(100 * precision[:, :, label].mean(), abs=1e-9)
            curves = measured.curves["precision"][kind][name]
            np.testing.assert_allclose(curves, precision[[0, 5], :, label], atol=1e-6)
    assert {m.split for m in measured.metrics} == {"val"}
    json.dumps(measured.curves)


def test_what_was_left_out_of_the_data_is_left_out_of_the_test(tmp_path: Path) -> None:
    data, content, results = made_data(tmp_path, seed=8)
    gone = frozenset(range(0, len(content["annotations"]), 3))
    images = {s.id for s in data.test[2:]}
    less = replace(data, test=data.test[2:], test_left_out=gone)
    mine = [r for r in results if r["image_id"] in images]
    content["annotations"] = [
        thing
        for place, thing in enumerate(content["annotations"])
        if place not in gone and thing["image_id"] in images
    ]
    found = {m.name: m.value for m in measure(less, mine, masks=False).metrics}
    expected = summarized(content, mine, "bbox").stats
    assert found["box_AP"] == pytest.approx(100 * expected[0], abs=1e-9)
    whole = {
        m.name: m.value
        for m in measure(replace(less, test_left_out=frozenset()), mine, masks=False).metrics
    }
    assert whole["box_AP"] != found["box_AP"]


def summarized(content, results, iou_type: str):
    """pycocotools' evaluation with its summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    unused = "bbox" if iou_type == "segm" else "segmentation"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        rows = [{k: v for k, v in r.items() if k != unused} for r in results]
        judged = COCOeval(truth, truth.loadRes(rows), iou_type)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def _code(segmentation, height: int, width: int):
    from pycocotools import mask as rle_tools

    code = rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    return {"size": code["size"], "counts": code["counts"].decode()}


def test_iou_thresholds_are_cocos() -> None:
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
