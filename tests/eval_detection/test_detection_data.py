"""Reading VOC and COCO, batches, augmentation; and one clear line for every kind of bad data."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from eval_detection import VERBS
from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data
from siambench.config import make_config
from siambench.errors import UserError


def voc(root: Path, **changes) -> DetectConfig:
    fields = {"train_sets": ["2007/trainval"], **changes}
    return DetectConfig(backbone="", data=str(root), **fields)


def coco(root: Path, **changes) -> DetectConfig:
    fields = {"train_sets": ["train2017"], "test_set": "val2017", "mask": True, **changes}
    return DetectConfig(backbone="", data=str(root / "coco"), format="coco", **fields)


def test_voc_boxes_are_zero_based(scenes: Path) -> None:
    data = open_data(voc(scenes))
    assert data.classes == sorted(data.classes)
    assert len(data.classes) == 10
    sample = data.train[0]
    xml = (scenes / "VOCdevkit/VOC2007/Annotations" / f"{sample.id}.xml").read_text()
    corners = [float(v) for v in re.findall(r"<[xy]m(?:in|ax)>([\d.]+)<", xml)]
    expected = np.array(corners, np.float32).reshape(-1, 4) - [1, 1, 0, 0]
    np.testing.assert_allclose(sample.boxes, expected)
    assert any(s.difficult.any() for s in data.train), "difficult objects stay in training"
    counts = data.info.counts
    assert counts["trainval"] == len(data.train)
    assert counts["test"] == len(data.test)
    assert data.info.name == "digit-scenes"


def test_voc_sets_are_joined(scenes: Path) -> None:
    both = open_data(voc(scenes, train_sets=["2007/trainval", "2012/trainval"]))
    one = open_data(voc(scenes))
    assert len(both.train) > len(one.train)
    assert both.info.counts["test"] == one.info.counts["test"]
    assert both.info.fingerprint != one.info.fingerprint


def test_coco_leaves_crowds_out_and_keeps_masks(scenes: Path) -> None:
    data = open_data(coco(scenes))
    content = json.loads((scenes / "coco/annotations/instances_train2017.json").read_text())
    things = [t for t in content["annotations"] if not t["iscrowd"]]
    assert len(things) < len(content["annotations"])
    assert sum(len(s.boxes) for s in data.train) == len(things)
    assert all(len(s.masks) == len(s.boxes) for s in data.train)
    assert data.category_ids == sorted(c["id"] for c in content["categories"])


def test_splits_of_two_years_are_counted_apart(copy: Path) -> None:
    folder = copy / "coco"
    (folder / "val2017").rename(folder / "train2014")
    names = [folder / "annotations" / f"instances_{s}.json" for s in ("val2017", "train2014")]
    names[0].rename(names[1])
    data = open_data(coco(copy, test_set="train2014"))
    assert data.info.counts["train2014"] == len(data.test) != len(data.train)
    assert data.info.counts["train2017"] >= len(data.train)


def test_fingerprint_is_where_the_data_is_not(scenes: Path, copy: Path) -> None:
    assert open_data(coco(scenes)).info.fingerprint == open_data(coco(copy)).info.fingerprint
    assert open_data(voc(scenes)).info.fingerprint == open_data(voc(copy)).info.fingerprint


def spoil_xml(copy: Path, pattern: str, replacement: str) -> None:
    folder = copy / "VOCdevkit/VOC2007"
    name = (folder / "ImageSets/Main/test.txt").read_text().split()[0]
    path = folder / "Annotations" / f"{name}.xml"
    spoilt = re.sub(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert spoilt != path.read_text()
    path.write_text(spoilt)


@pytest.mark.parametrize(
    ("pattern", "replacement", "line"),
    [
        (r"<size>.*</size>", "", r"\.xml: has no image size"),
        (r"<xmax>\d+</xmax>", "<xmax>9999</xmax>", r"box \(.*9999.*\) is outside its image"),
        (r"<xmax>\d+</xmax>", "<xmax>0</xmax>", r"box .* has no area"),
        (r"<ymin>\d+</ymin>", "", "has no whole bndbox"),
        (r"<name>\w+</name>", "<name>unicorn</name>", "class 'unicorn' is not one of"),
        (r"</annotation>", "", "is not XML"),
        (r"<width>\d+</width>", "<width>500</width>", "its annotation says 500 ×"),
    ],
)
def test_bad_voc_annotation(copy: Path, pattern: str, replacement: str, line: str) -> None:
    spoil_xml(copy, pattern, replacement)
    with pytest.raises(UserError, match=line):
        open_data(voc(copy))


def test_all_problems_are_counted_in_one_line(copy: Path) -> None:
    for path in (copy / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        path.write_text(re.sub(r"<size>.*</size>", "", path.read_text(), flags=re.DOTALL))
    with pytest.raises(UserError, match=r"^\d+ problems in .*; and \d+ more; correct") as error:
        open_data(voc(copy))
    assert "\n" not in str(error.value)


def test_missing_and_truncated_images(copy: Path) -> None:
    folder = copy / "VOCdevkit/VOC2007"
    names = (folder / "ImageSets/Main/test.txt").read_text().split()
    (folder / "JPEGImages" / f"{names[0]}.jpg").unlink()
    with pytest.raises(UserError, match=f"{names[0]}.jpg"):
        open_data(voc(copy))
    whole = open_data(voc(copy, skip_bad=True))
    assert whole.info.counts["skipped"] == 1
    assert whole.info.counts["test"] == len(names) - 1
    broken = folder / "JPEGImages" / f"{names[1]}.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=r"^2 problems in "):
        open_data(voc(copy))


def test_empty_split_and_wrong_names(copy: Path) -> None:
    (copy / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_text("\n")
    with pytest.raises(UserError, match=r"test\.txt is empty"):
        open_data(voc(copy))
    with pytest.raises(UserError, match="'trainval' is not YEAR/SPLIT"):
        open_data(voc(copy, train_sets=["trainval"]))
    with pytest.raises(UserError, match="VOC1999"):
        open_data(voc(copy, train_sets=["1999/trainval"]))
    with pytest.raises(UserError, match="no masks"):
        open_data(voc(copy, mask=True))
    with pytest.raises(UserError, match=r"instances_val2016\.json does not exist"):
        open_data(coco(copy, test_set="val2016"))


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("batch_size", 0, "it must be above 0"),
        ("max_iter", -1, "it must be above 0"),
        ("lr", 0.0, "must be above 0"),
        ("lr", float("nan"), "must be above 0"),
        ("max_size_test", 0, "it must be above 0"),
        ("min_size_train", [0], "each of its numbers must be above 0"),
        ("min_size_train", [], "it must hold at least one number"),
        ("anchor_ratios", [1.0, -0.5], "each of its numbers must be above 0"),
        ("steps", [-4], "each of its numbers must be above 0"),
        ("warmup_iters", -1, "it must be at least 0"),
        ("weight_decay", -1e-4, "it must be at least 0"),
        ("nms_threshold", 1.5, "it must be 0 to 1"),
        ("preset", "coco-mrcnn-c4-1x", "is not for --format voc"),
    ],
)
def test_numbers_that_cannot_be_meant(field: str, value: object, line: str) -> None:
    """Refused before the data is looked for."""
    with pytest.raises(UserError, match=f"{field} .*{line}"):
        open_data(voc(Path("nowhere"), **{field: value}))


def test_no_image_is_both_trained_on_and_tested(scenes: Path) -> None:
    for train, test in (("2007/trainval", "2007/val"), ("2007/test", "2007/test")):
        with pytest.raises(UserError, match=f"images of {train} are also in the test set {test}"):
            open_data(voc(scenes, train_sets=["2012/train", train], test_set=test))
    data = open_data(voc(scenes, train_sets=["2012/trainval"], test_set="2007/trainval"))
    assert data.info.counts["2012/trainval"] >= len(data.train) > 0
    assert data.info.counts["2007/trainval"] == len(data.test) > 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bbox": [5.0, 5.0, 900.0, 9.0]}, "annotation 1: box .* is outside its image"),
        ({"bbox": [5.0, 5.0, 0.0, 9.0]}, "annotation 1: box .* has no area"),
        ({"category_id": 4711}, "annotation 1: category 4711 is not in the file"),
        ({"image_id": 4711}, "annotation 1: image 4711 is not in the file"),
        ({"segmentation": [[1.0, 1.0, 2.0, 2.0]]}, "annotation 1: a polygon has fewer than three"),
        ({"segmentation": ["x"]}, "annotation 1: a polygon is not a list of numbers"),
        ({"segmentation": {"size": [1, 1]}}, "annotation 1: a run-length mask without counts"),
        ({"bbox": [5.0, 5.0, 9.0]}, r"annotation 1: bbox \[5.0, 5.0, 9.0\] is not four numbers"),
        ({"bbox": [5.0, 5.0, "9", 9.0]}, "annotation 1: bbox .* is not four numbers"),
        ({"bbox": None}, "annotation 1: bbox is 'None'"),
    ],
)
def test_bad_coco_annotation(copy: Path, change: dict, line: str) -> None:
    path = copy / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0].update(change, id=1, iscrowd=0)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=line):
        open_data(coco(copy))


@pytest.mark.parametrize(
    ("split", "part", "field", "line"),
    [
        ("train", "annotations", "bbox", "annotation 7: no bbox"),
        ("train", "annotations", "image_id", "annotation 7: no image_id"),
        ("train", "annotations", "category_id", "annotation 7: no category_id"),
        ("train", "annotations", "segmentation", "annotation 7: no segmentation"),
        ("train", "annotations", "id", "annotation number 1: no id"),
        ("val", "annotations", "area", "annotation 7: no area"),
        ("val", "annotations", "iscrowd", "annotation 7: no iscrowd"),
        ("val", "images", "height", "image 7: no height"),
        ("train", "images", "file_name", "image 7: no file_name"),
        ("train", "categories", "name", "category 7: no name"),
    ],
)
def test_missing_coco_fields(copy: Path, split: str, part: str, field: str, line: str) -> None:
    path = copy / f"coco/annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    content[part][0]["id"] = 7
    del content[part][0][field]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(f"{path}, {line}")) as error:
        open_data(coco(copy))
    assert "\n" not in str(error.value)


def test_bad_coco_file(copy: Path) -> None:
    path = copy / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="image id 1 is used twice"):
        open_data(coco(copy))
    path.write_text(path.read_text()[:500])
    with pytest.raises(UserError, match="is not JSON"):
        open_data(coco(copy))
    path.write_text("{}")
    with pytest.raises(
        UserError, match=r"train2017\.json: has no images, no annotations, no categories"
    ):
        open_data(coco(copy))
    path.write_text("[]")
    with pytest.raises(UserError, match=r"train2017\.json: holds a list, not images"):
        open_data(coco(copy))
    content["images"] = [3]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="image number 1: is not an object"):
        open_data(coco(copy))


def test_the_known_flat_boxes_of_train2017_are_let_pass(copy: Path) -> None:
    path = copy / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    boxes = open_data(coco(copy)).info.counts["train_boxes"]
    thing = next(t for t in content["annotations"] if not t["iscrowd"])
    thing["id"] = 2206849  # an id of COCO's on a sound box of another data set
    path.write_text(json.dumps(content))
    assert open_data(coco(copy)).info.counts["train_boxes"] == boxes
    thing["bbox"] = [9.98, 18.0, 5.54, 0.0]
    path.write_text(json.dumps(content))
    assert open_data(coco(copy)).info.counts["train_boxes"] == boxes - 1


def test_every_preset_is_a_whole_configuration() -> None:
    verb = VERBS["detect"]
    assert set(verb.preset_files()) >= {
        "voc07-frcnn-c4",
        "voc0712-frcnn-c4-24k",
        "coco-mrcnn-c4-1x",
        "coco-mrcnn-c4-2x",
    }
    for name in verb.preset_files():
        config = make_config(verb, {"backbone": "b", "data": "d", "preset": name})
        assert config.mask == (config.format == "coco")
        assert max(config.steps) < config.max_iter
    headline = make_config(verb, {"backbone": "", "data": "", "preset": "voc0712-frcnn-c4-24k"})
    defaults = DetectConfig(backbone="", data="", preset="voc0712-frcnn-c4-24k")
    assert headline == defaults
