"""Digit scenes: deterministic, disjoint splits, and each layout as its own readers expect it."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits
from torchvision.datasets import Cityscapes, ImageFolder, VOCDetection, VOCSegmentation

from siambench.data.digit_scenes import DigitScenesConfig, make, split_sizes
from siambench.data.digits import NAMES, POOLS, draw_several, draw_single, pool
from siambench.data.layouts import CITYSCAPES_IDS, COCO_IDS
from siambench.errors import UserError


def _digests(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_same_seed_same_bytes(scenes, tmp_path):
    again = make(DigitScenesConfig(str(tmp_path / "again"), images=100, size=32, seed=0))
    assert _digests(again) == _digests(scenes)
    other = make(DigitScenesConfig(str(tmp_path / "other"), images=100, size=32, seed=1))
    pictures = [n for n in _digests(other) if n.endswith((".jpg", "Img8bit.png"))]
    assert all(_digests(other)[n] != _digests(scenes).get(n) for n in pictures)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_digit_is_in_two_splits(seed):
    target = load_digits().target
    seen: list[int] = []
    for split, count in POOLS.items():
        members = np.concatenate(pool(split, seed))
        assert abs(len(members) - count) <= 10
        for digit, indices in enumerate(pool(split, seed)):
            assert (target[indices] == digit).all()
            assert len(indices) >= 15
        seen += members.tolist()
    assert sorted(seen) == list(range(len(target)))


def test_scenes_use_only_their_pool():
    for split in POOLS:
        allowed = set(np.concatenate(pool(split, 0)).tolist())
        for n in range(20):
            rng = np.random.default_rng(n)
            scene = draw_several(split, 96, 64, 32, rng, 0, crowd=True)
            assert set(scene.digits_used) <= allowed
            assert set(draw_single(split, n % 10, 32, rng, 0).digits_used) <= allowed


def test_imagenet_layout(scenes):
    train, val = (ImageFolder(scenes / "imagenet" / split) for split in ("train", "val"))
    assert train.classes == val.classes == sorted(NAMES)
    assert (len(train), len(val)) == (100, 50)
    assert np.bincount(train.targets).tolist() == [10] * 10
    assert train[0][0].size == (32, 32)


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_voc_layout(scenes, year):
    folder = scenes / "VOCdevkit" / f"VOC{year}"
    splits = ["train", "val", "trainval"] + ["test"] * (year == "2007")
    difficult = 0
    for split in splits:
        data = VOCDetection(scenes, year=year, image_set=split)
        assert len(data) > 10
        names = (folder / "ImageSets/Main" / f"{split}.txt").read_text().split()
        flags = {}
        for label in NAMES:
            rows = (folder / "ImageSets/Main" / f"{label}_{split}.txt").read_text().splitlines()
            assert [r.split()[0] for r in rows] == names
            flags[label] = [int(r.split()[1]) for r in rows]
        for index, (image, target) in enumerate(data):
            width, height = image.size
            best = dict.fromkeys(NAMES, -1)
            for thing in target["annotation"].get("object", []):
                box = {k: int(v) for k, v in thing["bndbox"].items()}
                assert 1 <= box["xmin"] <= box["xmax"] <= width
                assert 1 <= box["ymin"] <= box["ymax"] <= height
                easy = int(thing["difficult"] == "0")
                difficult += 1 - easy
                best[thing["name"]] = max(best[thing["name"]], easy)
            assert all(flags[label][index] == best[label] for label in NAMES)
    assert difficult > 0


def test_voc_masks_agree_with_boxes_and_have_a_border(scenes):
    data = VOCSegmentation(scenes, year="2012", image_set="train")
    classes = sorted(NAMES)
    for path, (image, mask) in zip(data.images, data, strict=True):
        labels = np.asarray(mask)
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]  # VOC's class 1
        assert mask.size == image.size
        assert (labels == 255).any()
        tree = ET.parse(path.replace("JPEGImages", "Annotations").replace(".jpg", ".xml"))
        named = {classes.index(e.text) + 1 for e in tree.findall("object/name")}
        assert set(np.unique(labels)) - {0, 255} == named
        aug = path.replace("JPEGImages", "SegmentationClassAug").replace(".jpg", ".png")
        unbordered = np.asarray(Image.open(aug))
        assert set(np.unique(unbordered)) - {0} == named
        inside = labels != 255
        assert (labels[inside] == unbordered[inside]).all()
    lists = scenes / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    train = (lists / "train.txt").read_text().split()
    assert set(train) < set((lists / "train_aug.txt").read_text().split())


def test_coco_layout(scenes, capsys):
    crowds = 0
    for split in ("train", "val"):
        coco = COCO(scenes / "coco/annotations" / f"instances_{split}2017.json")
        assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {
            COCO_IDS[d]: name for d, name in enumerate(NAMES)
        }
        assert len({a["id"] for a in coco.dataset["annotations"]}) == len(coco.anns)
        for annotation in coco.anns.values():
            image = coco.imgs[annotation["image_id"]]
            mask = coco.annToMask(annotation)
            assert mask.shape == (image["height"], image["width"])
            assert mask.sum() == annotation["area"]
            ys, xs = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            assert abs(xs.min() - x) <= 1
            assert abs(ys.max() + 1 - y - h) <= 1
            assert x + w <= image["width"]
            crowds += annotation["iscrowd"]
            kind = dict if annotation["iscrowd"] else list
            assert isinstance(annotation["segmentation"], kind)
        for image in coco.imgs.values():
            assert (scenes / f"coco/{split}2017" / image["file_name"]).is_file()
    assert crowds > 0


def test_cityscapes_layout(scenes):
    for split in ("train", "val"):
        data = Cityscapes(scenes / "cityscapes", split, mode="fine", target_type="semantic")
        for image, mask in data:
            labels = set(np.unique(np.asarray(mask)).tolist())
            assert image.size == mask.size == (64, 32)
            assert labels <= {0, 7, *CITYSCAPES_IDS}
            assert {0, 7} < labels
            trained = {c.id for c in Cityscapes.classes if not c.ignore_in_eval}
            assert labels - {0} <= trained


def test_bigger_is_a_flag_away():
    sizes = split_sizes(200_000)
    assert sizes["imagenet/val"] == 40_000
    assert sizes["voc2007/test"] == 13_333


def test_made_once_and_never_over_something_else(scenes, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in scenes.rglob("*")}
    make(DigitScenesConfig(str(scenes), images=100, size=32, seed=0))
    assert {p: p.stat().st_mtime_ns for p in scenes.rglob("*")} == before
    with pytest.raises(UserError, match="is not this data set"):
        make(DigitScenesConfig(str(scenes), images=200, size=32))
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="remove it or choose another"):
        make(DigitScenesConfig(str(tmp_path), images=100))
    assert (tmp_path / "letter.txt").read_text() == "keep me"
    with pytest.raises(UserError, match="size 24 to 512"):
        make(DigitScenesConfig(str(tmp_path / "x"), size=8))


def test_the_marker_names_the_data_set(scenes):
    marker = json.loads((scenes / "siambench-data.json").read_text())
    assert marker["name"] == "digit-scenes"
    assert marker["seed"] == 0
