"""What is refused before hours of work, rather than a traceback or a wrong number after them."""

import json
from pathlib import Path

import pytest

from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data
from eval_detection.torchvision_engine.loader import resized_shape
from siambench.errors import UserError


def voc(data: Path, **changes) -> DetectConfig:
    return DetectConfig(
        backbone="", data=str(data), **{"train_sets": ["2007/trainval"], "mask": False, **changes}
    )


def coco(data: Path, **changes) -> DetectConfig:
    return voc(
        data / "coco",
        **{"format": "coco", "mask": True, "train_sets": ["train2017"], "test_set": "val2017"},
        **changes,
    )


def all_difficult(folder: Path, split: str) -> None:
    for name in (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))


def test_sets_of_difficult_objects_only(copy: Path) -> None:
    folder = copy / "VOCdevkit" / "VOC2007"
    all_difficult(folder, "trainval")
    assert open_data(voc(copy)).train  # they are trained on
    with pytest.raises(UserError, match=r"every object of the .* held-out images is difficult"):
        open_data(voc(copy, lr=[0.1, 0.2]))
    all_difficult(folder, "test")
    with pytest.raises(UserError, match="every object of the test set test is difficult"):
        open_data(voc(copy))


def test_an_image_in_two_training_sets(copy: Path) -> None:
    with pytest.raises(UserError, match="image ids are in 2007/train and in 2007/trainval"):
        open_data(voc(copy, train_sets=["2007/train", "2007/trainval"]))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"segmentation": []}, "no polygon"),
        ({"segmentation": [[1.0, 1.0, 5.0, 5.0]]}, "fewer than three points"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, "of another size than its image"),
        ({"area": float("nan")}, "area is nan"),
        ({"id": 2**70}, "id is beyond"),
    ],
)
def test_a_crowd_that_the_test_cannot_read(copy: Path, change: dict, line: str) -> None:
    path = copy / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    crowd = next(t for t in content["annotations"] if t["iscrowd"])
    crowd.update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=line):
        open_data(coco(copy))
    left = open_data(coco(copy, skip_bad=True))
    assert left.info.counts["skipped_objects"] == 1
    assert len(left.test_left_out) == 1


def test_two_classes_of_one_name(copy: Path) -> None:
    for split in ("train", "val"):
        path = copy / f"coco/annotations/instances_{split}2017.json"
        content = json.loads(path.read_text())
        content["categories"][1]["name"] = content["categories"][0]["name"]
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"category name .* is used twice"):
        open_data(coco(copy))


def test_steps_that_a_large_batch_makes_one() -> None:
    config = voc(Path(), batch_size=64, max_iter=400, steps=[70, 71], warmup_iters=1)
    assert config.schedule().steps == (18,)
    assert voc(Path(), batch_size=64, max_iter=400, steps=[1, 50]).schedule().steps == (12,)
    with pytest.raises(UserError, match="it must end before the first of --steps"):
        open_data(voc(Path(), steps=[50], warmup_iters=60))


def test_sizes_that_rounding_decides() -> None:
    """detectron2's own answers for two sizes, and a picture that would vanish."""
    assert resized_shape(300, 600, 672, 1333) == (666, 1333)
    assert resized_shape(306, 612, 704, 1333) == (667, 1333)
    assert resized_shape(1, 4000, 800, 1333) == (1, 1333)
