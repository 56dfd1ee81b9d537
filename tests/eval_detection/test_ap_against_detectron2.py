"""Our average precision beside that of detectron2's own evaluators, on the same detections."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from made_detections import CATEGORIES, made_coco
from pycocotools import mask as rle_tools

from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data
from eval_detection.metrics import measure
from eval_detection.samples import DetectionData, as_sample
from siambench.record import DatasetInfo

pytestmark = pytest.mark.detectron2
_numbers = count()


def registered(**facts) -> str:
    """A data set of its own in detectron2's catalog."""
    from detectron2.data import MetadataCatalog

    name = f"made_{next(_numbers)}"
    MetadataCatalog.get(name).set(**facts)
    return name


def instances_of(size: tuple[int, int], boxes, scores, labels, masks=None):
    """Detections as detectron2's models return them; boxes (N, 4) x, y, width, height."""
    from detectron2.structures import Boxes, Instances

    found = Instances(size)
    corners = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
    corners[:, 2:] += corners[:, :2]
    found.pred_boxes, found.scores = Boxes(corners), torch.tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.tensor(labels, dtype=torch.int64)
    if masks is not None:
        found.pred_masks = torch.from_numpy(masks)
    return found


@pytest.mark.parametrize(("seed", "fast"), [(0, True), (1, True), (2, False)])
def test_coco_evaluator_agrees(tmp_path: Path, seed: int, fast: bool) -> None:
    from detectron2.evaluation import COCOEvaluator
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json

    content, made = made_coco(seed)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"info": {}, **content}))
    names = [c["name"] for c in content["categories"]]
    name = registered(
        json_file=str(path),
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(CATEGORIES)},
    )
    evaluator = COCOEvaluator(name, ("bbox", "segm"), distributed=False, use_fast_impl=fast)
    evaluator.reset()
    results = []
    for image in content["images"]:
        mine = [r for r in made if r["image_id"] == image["id"]]
        size = image["height"], image["width"]
        masks = [rle_tools.decode(r["segmentation"]).astype(bool) for r in mine]
        found = instances_of(
            size,
            [r["bbox"] for r in mine],
            [r["score"] for r in mine],
            [CATEGORIES.index(r["category_id"]) for r in mine],
            np.array(masks).reshape(-1, *size),
        )
        for row in instances_to_coco_json(found, image["id"]):
            results.append({**row, "category_id": CATEGORIES[row["category_id"]]})
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    expected = evaluator.evaluate()
    test = [as_sample(path, i["id"], i["height"], i["width"], [], []) for i in content["images"]]
    info = DatasetInfo("made", "", {})
    data = DetectionData(names, CATEGORIES, [], test, info, path, path)
    metrics = measure(data, results, masks=True).metrics
    assert sum(thing["iscrowd"] for thing in content["annotations"]) > 3
    for kind, task in (("box", "bbox"), ("mask", "segm")):
        values = {
            (m.name.removeprefix(f"{kind}_"), m.params.get("class", "")): m.value
            for m in metrics
            if m.name.startswith(kind)
        }
        for part in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            assert values[part, ""] == pytest.approx(expected[task][part], abs=1e-4)
            assert 5 < values[part, ""] < 95
        for label in names[:-1]:
            theirs = expected[task][f"AP-{label}"]
            assert values["AP_class", label] == pytest.approx(theirs, abs=1e-4)
        assert np.isnan(expected[task][f"AP-{names[-1]}"])


@pytest.mark.parametrize(("year", "rule"), [(2007, "11-point"), (2012, "all-points")])
def test_pascal_evaluator_agrees(scenes: Path, year: int, rule: str) -> None:
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    data = open_data(DetectConfig(backbone="", data=str(scenes), train_sets=["2007/trainval"]))
    folder = scenes / "VOCdevkit" / "VOC2007"
    name = registered(dirname=str(folder), split="test", year=year, thing_classes=data.classes)
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    rng = np.random.default_rng(year)
    # Its files keep three decimals of a score and one of a coordinate, and it breaks ties by chance.
    scores = (rng.permutation(1000) / 1000).tolist()
    results, used = [], dict.fromkeys(range(len(data.classes)), 0)
    for s in data.test:
        boxes, labels, mine = [], [], []
        for (x0, y0, x1, y1), label in zip(s.boxes.tolist(), s.labels.tolist(), strict=True):
            for _ in range(int(rng.integers(0, 5))):
                wrong = rng.random() < 0.15
                mine_label = int(rng.integers(len(data.classes))) if wrong else label
                x, y, right, bottom = np.array([x0, y0, x1, y1]) + rng.integers(-4, 5, 4) / 2
                boxes.append([x, y, max(right - x, 1), max(bottom - y, 1)])
                labels.append(mine_label)
                mine.append(scores[used[mine_label]])
                used[mine_label] += 1
                results.append(
                    {
                        "image_id": s.id,
                        "category_id": data.category_ids[mine_label],
                        "bbox": boxes[-1],
                        "score": mine[-1],
                    }
                )
        found = instances_of((s.height, s.width), boxes, mine, labels)
        evaluator.process([{"image_id": s.id}], [{"instances": found}])
    expected = evaluator.evaluate()["bbox"]
    assert sum(int(s.difficult.sum()) for s in data.test) > 3
    values = {
        m.name: m.value
        for m in measure(data, results, masks=False).metrics
        if m.params["rule"] == rule
    }
    for part in ("AP", "AP50", "AP75"):
        assert values[f"box_{part}"] == pytest.approx(expected[part], abs=1e-4)
        assert 5 < expected[part] < 95
