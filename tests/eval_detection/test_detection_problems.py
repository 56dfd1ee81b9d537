"""All that is wrong with a data set is said once and at once, and what --skip_bad leaves out is as if never there."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from eval_detection.coco_json import as_mask, run_lengths
from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data
from eval_detection.problems import wrong_boxes
from eval_detection.samples import DetectionData
from siambench.errors import UserError


@pytest.fixture
def root(copy: Path) -> Path:
    """The same."""
    return copy


def open_coco(root: Path, **changes) -> DetectionData:
    fields = {"train_sets": ["train2017"], "test_set": "val2017", "mask": True, **changes}
    return open_data(DetectConfig(backbone="", data=str(root / "coco"), format="coco", **fields))


def open_voc(root: Path, **changes) -> DetectionData:
    fields = {"train_sets": ["2007/trainval"], **changes}
    return open_data(DetectConfig(backbone="", data=str(root), **fields))


class CocoFiles:
    """Both annotation files, to be changed and written back."""

    def __init__(self, root: Path) -> None:
        folder = root / "coco/annotations"
        self.paths = {s: folder / f"instances_{s}2017.json" for s in ("train", "val")}
        self.content = {s: json.loads(path.read_text()) for s, path in self.paths.items()}

    def things(self, split: str) -> list[dict]:
        """The annotations that are no crowd, from one of an image of several on."""
        return [t for t in self.content[split]["annotations"] if not t["iscrowd"]]

    def write(self) -> None:
        for split, path in self.paths.items():
            path.write_text(json.dumps(self.content[split]))


def spoil_coco(root: Path, files: CocoFiles) -> tuple[set[int], list[str]]:
    """Make mistakes of every kind that can be left out; ids of the wrong objects, and what to expect."""
    train, val = (f"{files.paths[split]}, annotation " for split in ("train", "val"))
    box, category, polygon, far, both = files.things("train")[:5]
    size = next(i for i in files.content["train"]["images"] if i["id"] == box["image_id"])
    box["bbox"] = [5, 5, 900, 4]
    category["category_id"] = 4711
    polygon["segmentation"].append([1.0, 2.0, 3.0, 4.0])
    far["image_id"] = 4712
    both["bbox"][2], both["segmentation"] = 0, [[1.0] * 7]
    x, y, _, h = both["bbox"]
    other = files.things("val")[0]
    del other["area"]
    expected = [
        f"{train}{box['id']}: box (5, 5, 905, 9) is outside its image "
        f"({size['width']} × {size['height']} px)",
        f"{train}{category['id']}: category 4711 is not in the file",
        f"{train}{polygon['id']}: a polygon has fewer than three points",
        f"{train}{far['id']}: image 4712 is not in the file",
        f"{train}{both['id']}: box ({x:g}, {y:g}, {x:g}, {y + h:g}) has no area",
        f"{train}{both['id']}: a polygon has an odd count of numbers",
        f"{val}{other['id']}: no area",
    ]
    return {t["id"] for t in (box, category, polygon, far, both)}, expected


def spoil_pictures(root: Path, files: CocoFiles) -> list[str]:
    """One missing, one cut off, one of another size, one without a height; what to expect."""
    first, second, third, fourth = files.content["val"]["images"][1:5]
    folder = root / "coco/val2017"
    (folder / first["file_name"]).unlink()
    whole = (folder / second["file_name"]).read_bytes()
    (folder / second["file_name"]).write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 7)).save(folder / third["file_name"])
    fourth["height"] = 0
    width, height = third["width"], third["height"]
    return [
        f"image {first['id']}: {folder / first['file_name']} cannot be read",
        f"image {second['id']}: {folder / second['file_name']} cannot be decoded",
        f"image {third['id']}: {folder / third['file_name']} is 9 × 7 px, its annotation says "
        f"{width} × {height}",
        f"{files.paths['val']}, image {fourth['id']}: height 0 and width {fourth['width']} make no",
    ]


def assert_lists(error: UserError, expected: list[str]) -> None:
    """Every expected problem is one of the details, each once, and no other; the error is one line."""
    assert len(set(error.details)) == len(error.details) == len(expected), error.details
    for text in expected:
        assert sum(line.startswith(text) for line in error.details) == 1, text
    assert "\n" not in str(error)
    assert all(line.isprintable() for line in error.details)


def test_every_problem_of_both_splits_and_all_stages_is_listed_once(root: Path) -> None:
    files = CocoFiles(root)
    _, expected = spoil_coco(root, files)
    expected += spoil_pictures(root, files)
    files.write()
    with pytest.raises(
        UserError, match=f"^{len(expected)} problems in .*; and 6 more; .*--skip_b"
    ) as e:
        open_coco(root)
    assert_lists(e.value, expected)
    assert pickle.loads(pickle.dumps(e.value)).details == e.value.details


def test_skip_bad_leaves_out_what_is_wrong_as_if_it_had_never_been_there(root: Path) -> None:
    files = CocoFiles(root)
    wrong, expected = spoil_coco(root, files)
    pictures = spoil_pictures(root, files)
    lost = {image["id"] for image in files.content["val"]["images"][1:5]}
    bad_val = files.things("val")[0]["id"]
    files.write()
    data = open_coco(root, skip_bad=True)
    assert data.info.counts["skipped"] == len(pictures)
    assert data.info.counts["skipped_objects"] == len({line.split(": ")[0] for line in expected})
    for split, gone, left_out in (
        ("train", wrong, data.train_left_out),
        ("val", {bad_val}, data.test_left_out),
    ):
        things = files.content[split]["annotations"]
        assert {things[place]["id"] for place in left_out} == gone
        content = files.content[split]
        content["annotations"] = [t for t in things if t["id"] not in gone]
        content["images"] = [
            i for i in content["images"] if split == "train" or i["id"] not in lost
        ]
        known = {i["id"] for i in content["images"]}
        content["annotations"] = [t for t in content["annotations"] if t["image_id"] in known]
    files.write()
    clean = open_coco(root)
    assert "skipped_objects" not in clean.info.counts
    for mine, theirs in ((data.train, clean.train), (data.test, clean.test)):
        assert [s.id for s in mine] == [s.id for s in theirs]
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.labels, other.labels)
            assert len(one.masks) == len(other.masks) == len(one.boxes)


def test_what_makes_a_coco_file_senseless_is_refused_always(root: Path) -> None:
    files = CocoFiles(root)
    train, val = (files.content[split] for split in ("train", "val"))
    image, thing, category = train["images"][3], val["annotations"][2], train["categories"][1]
    train["images"] += [image, image]
    val["annotations"].append(thing)
    train["categories"].append(category)
    val["categories"][0]["name"] = "another"
    train["images"][0]["file_name"] = "../val2017/x.jpg"
    other = train["images"][0]["id"]
    thing = files.things("train")[-1]
    thing["bbox"] = [0, 0, 0, 0]  # this one --skip_bad leaves out
    files.write()
    expected = [
        f"{files.paths['train']}: image id {image['id']} is used twice",
        f"{files.paths['val']}: annotation id {val['annotations'][-1]['id']} is used twice",
        f"{files.paths['train']}: category id {category['id']} is used twice",
        f"{files.paths['train']} and {files.paths['val']}: do not have the same categories",
        f"{files.paths['train']}, image {other}: file_name '../val2017/x.jpg' is not inside",
    ]
    with pytest.raises(UserError, match=r"; correct them$") as error:
        open_coco(root, skip_bad=True)
    assert_lists(error.value, expected)
    with pytest.raises(UserError) as error:
        open_coco(root)
    assert any("has no area" in line for line in error.value.details)


def test_an_unreadable_file_does_not_hide_the_other(root: Path) -> None:
    files = CocoFiles(root)
    files.content["val"]["annotations"] = []
    files.write()
    files.paths["train"].write_text('{"images": [')
    with pytest.raises(UserError) as error:
        open_coco(root)
    expected = [
        f"{files.paths['train']}: is not JSON",
        f"{files.paths['val']}: has no annotations",
    ]
    assert_lists(error.value, expected)


def spoil_xml(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    path = folder / "Annotations" / f"{name}.xml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def test_every_problem_of_a_voc_folder_is_listed_once(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2007"
    lists = {s: folder / f"ImageSets/Main/{s}.txt" for s in ("trainval", "test")}
    names = lists["test"].read_text().split()
    pictures = [folder / "JPEGImages" / f"{name}.jpg" for name in names]
    with Image.open(pictures[1]) as image:
        width, height = image.size
    paths = [
        spoil_xml(folder, names[0], ("<difficult>0<", "<difficult>maybe<")),
        spoil_xml(folder, names[1], (f"<width>{width}<", "<width>12.5<")),
        spoil_xml(folder, names[2], ("<height>", "<height>-"), ("<name>", "<name>\u202eun")),
        spoil_xml(folder, names[3], ("<ymin>", "<ymin>x")),
    ]
    (folder / "Annotations" / f"{names[4]}.xml").unlink()
    pictures[4].unlink()
    expected = [
        f"{paths[0]}, object 1 (",
        f"{paths[1]}: image size '12.5' × '{height}' is not two whole numbers above 0",
        f"{paths[2]}: image size ",
        f"{paths[2]}, object 1 (",
        f"{paths[3]}, object 1 (",
        f"{folder}/Annotations/{names[4]}.xml: cannot be read",
        f"image {names[4]}: {pictures[4]} cannot be read",
    ]
    with pytest.raises(UserError, match=r"^7 problems in .* \+?") as error:
        open_voc(root)
    assert_lists(error.value, expected)
    whole = open_voc(root, skip_bad=True)
    assert whole.info.counts["test"] == len(names) - 3
    assert whole.info.counts["skipped"] == 3
    assert whole.info.counts["skipped_objects"] == 3
    again = lists["trainval"].read_text().split()[2]
    lists["trainval"].write_text(lists["trainval"].read_text() + f"{again}\n{again}\n")
    lists["test"].write_text("")
    refused = [
        f"{lists['trainval']}: image {again} is listed 3 times",
        f"{folder}: {lists['test']} is empty",
    ]
    with pytest.raises(UserError, match=r"; correct them$") as error:
        open_voc(root, skip_bad=True)
    assert_lists(error.value, refused)


def test_counts_of_difficult_objects(scenes: Path) -> None:
    data = open_voc(scenes)
    texts = [
        (scenes / "VOCdevkit/VOC2007/Annotations" / f"{s.id}.xml").read_text() for s in data.test
    ]
    assert data.info.counts["test_boxes"] == sum(text.count("<object>") for text in texts)
    easy = sum(text.count("<difficult>0</difficult>") for text in texts)
    assert data.info.counts["test_not_difficult"] == easy < data.info.counts["test_boxes"]


def test_wrong_boxes_against_the_rule_for_one_box() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.integers(-3, 14, (3000, 4)).astype(float)
    boxes[rng.random(boxes.shape) < 0.01] = np.nan
    sizes = rng.choice([[10, 12], [12, 10], [0, 0]], 3000)
    found = wrong_boxes(boxes, sizes)
    for row, ((x0, y0, x1, y1), (height, width)) in enumerate(zip(boxes, sizes, strict=True)):
        text = found.get(row, "")
        has_area = x1 > x0 and y1 > y0
        inside = min(x0, y0) >= -1 and (height == 0 or (x1 <= width + 1 and y1 <= height + 1))
        assert ("has no area" in text) == (not has_area)
        assert ("outside" in text) == (has_area and not inside)
    assert 0 < len(found) < 3000


def test_run_lengths_are_those_that_pycocotools_wrote() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 1.0):
        bitmap = (rng.random((37, 53)) < density).astype(np.uint8)
        code = rle_tools.encode(np.asfortranarray(bitmap))
        runs = run_lengths(code["counts"].decode())
        pixels = np.repeat(np.arange(len(runs)) % 2, runs)
        np.testing.assert_array_equal(pixels.reshape(53, 37).T, bitmap)
        text = {"size": [37, 53], "counts": code["counts"].decode()}
        assert as_mask(text, 37, 53)[1] == ""
        assert as_mask({"size": [37, 53], "counts": runs}, 37, 53)[1] == ""
        short = {"size": [37, 53], "counts": text["counts"][:-1]}  # pycocotools decodes garbage
        assert "do not add up" in as_mask(short, 37, 53)[1]
        assert "of another size" in as_mask(text, 53, 37)[1]
    for counts in ("~~", "é", [3, -1], [1.5], ["x"], []):
        assert "do not add up" in as_mask({"size": [1, 2], "counts": counts}, 1, 2)[1]
    assert "without counts" in as_mask({"size": [1, 2]}, 1, 2)[1]
    assert as_mask([], 1, 2)[1] == "no polygon"


def test_run_length_masks_are_kept_encoded_and_seen_decoded(root: Path) -> None:
    files = CocoFiles(root)
    plain = {s.id: s for s in open_coco(root).train}
    sizes = {i["id"]: [i["height"], i["width"]] for i in files.content["train"]["images"]}
    bitmaps = {}
    for number, thing in enumerate(files.things("train")[:20]):
        size = sizes[thing["image_id"]]
        code = rle_tools.merge(rle_tools.frPyObjects(thing["segmentation"], *size))
        bitmaps[thing["image_id"], tuple(thing["bbox"])] = rle_tools.decode(code)
        counts = code["counts"].decode()
        counts = run_lengths(counts) if number % 2 else counts
        thing["segmentation"] = {"size": size, "counts": counts}
    files.write()
    seen = 0
    for sample in open_coco(root).train:
        assert len(pickle.dumps(sample.masks)) < 20_000
        masks = pickle.loads(pickle.dumps(sample.masks))
        for mask, box, before in zip(masks, sample.boxes, plain[sample.id].masks, strict=True):
            x0, y0, x1, y1 = box.tolist()
            bitmap = bitmaps.get((sample.id, (x0, y0, x1 - x0, y1 - y0)))
            if bitmap is None:
                assert all(np.array_equal(a, b) for a, b in zip(mask, before, strict=True))
            else:
                np.testing.assert_array_equal(mask, bitmap)
                seen += 1
        assert len(masks[1:]) == len(masks) - 1
    assert seen == 20
