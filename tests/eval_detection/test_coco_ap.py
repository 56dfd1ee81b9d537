"""COCO's precision, bit for bit that of pycocotools' COCOeval on made detections."""

import contextlib
import copy
import io

import numpy as np
import pytest
from made_detections import CATEGORIES, made_coco

from eval_detection import coco_ap, overlaps
from eval_detection.coco_ap import coco_precision


def pycocotools_precision(content, results, images, kind: str) -> np.ndarray:
    """(IoUs, recalls, categories, sizes), of 100 detections an image and class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    unused = (
        "bbox" if kind == "mask" else "segmentation"
    )  # with a bbox its area would be the mask's
    rows = [{k: v for k, v in r.items() if k != unused} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(rows), {"box": "bbox", "mask": "segm"}[kind])
        judged.params.imgIds = list(images)
        judged.evaluate()
        judged.accumulate()
    return judged.eval["precision"][..., -1]


def ids_of(content) -> list[int]:
    return [image["id"] for image in content["images"]]


@pytest.mark.parametrize("seed", range(6))
def test_precision_is_pycocotools(seed: int) -> None:
    content, results = made_coco(seed)
    found = coco_precision(content, results, ids_of(content), CATEGORIES, masks=True)
    assert list(found) == ["box", "mask"]
    for kind, precision in found.items():
        expected = pycocotools_precision(content, results, ids_of(content), kind)
        np.testing.assert_array_equal(precision, expected)
        assert precision.shape == (10, 101, 5, 4)
        assert (precision[:, :, -1] == -1).all()  # a class without objects
        assert 0.1 < precision[:, :, :-1, 0].mean() < 0.9
        assert len({*precision[0, :, 0, 1:].mean(axis=0).tolist()}) == 3  # sizes tell


def test_the_made_detections_meet_the_rules() -> None:
    content, results = made_coco(0)
    things = content["annotations"]
    assert 0 < sum(t["iscrowd"] for t in things) < len(things) / 2
    masks = [t["segmentation"] for t in things]
    assert {len(m) for m in masks if isinstance(m, list)} == {1, 2}
    assert {type(m["counts"]) for m in masks if isinstance(m, dict)} == {str, list}
    assert len({r["score"] for r in results}) < len(results) / 4
    counts = [
        sum(r["image_id"] == i for r in results if r["category_id"] == 3) for i in ids_of(content)
    ]
    assert max(counts) > 100
    assert not any(t["image_id"] == content["images"][0]["id"] for t in things)


def test_a_part_of_the_images_and_annotations() -> None:
    content, results = made_coco(1)
    part = ids_of(content)[::2]
    gone = frozenset(range(0, len(content["annotations"]), 5))
    mine = [r for r in results if r["image_id"] in part]
    found = coco_precision(content, mine, part, CATEGORIES, masks=True, left_out=gone)
    kept = [t for place, t in enumerate(content["annotations"]) if place not in gone]
    for kind, precision in found.items():
        expected = pycocotools_precision({**content, "annotations": kept}, results, part, kind)
        np.testing.assert_array_equal(precision, expected)
    whole = coco_precision(content, mine, part, CATEGORIES)
    assert (whole["box"] != found["box"]).any()


def test_work_done_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = made_coco(2)
    expected = coco_precision(content, results, ids_of(content), CATEGORIES, masks=True)
    monkeypatch.setattr(overlaps, "_MOST", 7)
    monkeypatch.setattr(coco_ap, "_CHUNK", 5)
    found = coco_precision(content, results, ids_of(content), CATEGORIES, masks=True)
    for kind, precision in found.items():
        np.testing.assert_array_equal(precision, expected[kind])


def test_without_detections_precision_is_0_where_there_are_objects() -> None:
    content, results = made_coco(3)
    for none in ([], [r for r in results if r["category_id"] == CATEGORIES[-1]]):
        for precision in coco_precision(
            content, none, ids_of(content), CATEGORIES, masks=True
        ).values():
            assert (precision[:, :, :-1, 0] == 0).all()
            assert (precision[:, :, -1] == -1).all()


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    boxes = [[0, 0, 10, 10], [2, 0, 10, 10]]
    things = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [x, 0, 10, 10], "score": score}
        for x, score in ((1, 0.9), (3, 0.8))  # the first overlaps both alike, the second the second
    ]
    means = []
    for annotations in (things, things[::-1]):
        content = {
            "images": [{"id": 1, "height": 20, "width": 20}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "a"}],
        }
        found = coco_precision(content, results, [1], [1])["box"]
        np.testing.assert_array_equal(found, pycocotools_precision(content, results, [1], "box"))
        means.append(found[5].max(axis=-1).mean())
    assert means[0] < means[1]


def test_an_object_with_id_0_counts() -> None:
    """pycocotools takes a match with it for none."""
    content, results = made_coco(4)
    expected = pycocotools_precision(content, results, ids_of(content), "box")
    for thing in content["annotations"]:
        thing["id"] -= 1
    found = coco_precision(content, results, ids_of(content), CATEGORIES)["box"]
    np.testing.assert_array_equal(found, expected)
    assert (pycocotools_precision(content, results, ids_of(content), "box") != expected).any()


def test_areas_and_crowds_may_be_absent() -> None:
    content, results = made_coco(5)
    for thing in content["annotations"]:
        thing["iscrowd"], thing["area"] = 0, thing["bbox"][2] * thing["bbox"][3]
    expected = pycocotools_precision(content, results, ids_of(content), "box")
    for thing in content["annotations"]:
        del thing["iscrowd"], thing["area"]
    found = coco_precision(content, results, ids_of(content), CATEGORIES)["box"]
    np.testing.assert_array_equal(found, expected)
