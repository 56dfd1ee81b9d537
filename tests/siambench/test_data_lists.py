"""Data sets whose splits are lists: text files, Places205's, iNaturalist's JSON."""

import json
import os

import pytest
from test_classification_data import folders, listed, text_lists, write

from siambench.data.classification import open_classification
from siambench.errors import UserError

TRAIN = ["img/cat/a b.jpg 0", "img/dog/1.jpg 1", "img/cat/2.jpg\t0", "img/dog/3.jpg 1"]
VAL = ["other/9.jpg 1"]


def test_text_lists_with_blanks_in_paths(tmp_path):
    found = open_classification(str(text_lists(tmp_path, TRAIN, VAL)))
    assert listed(found.train)[0] == ("img/cat/a b.jpg", 0)
    assert listed(found.train)[2:] == [("img/cat/2.jpg", 0), ("img/dog/3.jpg", 1)]
    assert listed(found.test) == [("other/9.jpg", 1)]
    assert found.test.name == "val"
    assert found.classes == ["cat", "dog"]
    assert found.info.counts == {"train": 4, "val": 1, "classes": 2, "skipped": 0}


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"\xff 1.jpg")
    root = text_lists(tmp_path, TRAIN, ["a.jpg 1"])
    write(root / name)
    (root / "val.txt").write_bytes(b"\xff 1.jpg 1\n")
    found = open_classification(str(root))
    assert listed(found.test) == [(name, 1)]
    (root / name).rename(root / "b.jpg")
    (root / "val.txt").write_text("b.jpg 1\n")
    assert open_classification(str(root)).info.fingerprint != found.info.fingerprint


def test_class_names_from_a_file_or_else_the_numbers(tmp_path):
    root = text_lists(tmp_path, ["x/1.jpg 0", "x/2.jpg 1"], VAL, names=("train.txt", "test.txt"))
    found = open_classification(str(root))
    assert (found.classes, found.test.name) == (["0", "1"], "test")
    (root / "classes.txt").write_text("blue whale\n\nox\n")
    assert open_classification(str(root)).classes == ["blue whale", "ox"]
    (root / "classes.txt").write_text("ox\n")
    with pytest.raises(UserError, match=r"x/2\.jpg has label 1, but .*classes.txt names 1 classes"):
        open_classification(str(root))
    (root / "classes.txt").write_text("ox\ncow\nhen\n")
    with pytest.raises(UserError, match="class hen has no image in train;"):
        open_classification(str(root))


@pytest.mark.parametrize("lists", ["", "trainvalsplit_places205/"])
@pytest.mark.parametrize("images", ["", "images256", "data/vision/torralba/deeplearning/images256"])
def test_places205_as_it_unpacks(tmp_path, lists, images):
    root = text_lists(
        tmp_path,
        ["a/abbey/gsun_1.jpg 0", "a/apartment_building/outdoor/gsun_2.jpg 1"],
        ["a/abbey/gsun_3.jpg 0"],
        images,
        [f"{lists}{split}_places205.csv" for split in ("train", "val")],
    )
    found = open_classification(str(root))
    assert found.classes == ["abbey", "apartment_building/outdoor"]
    assert listed(found.test) == [("a/abbey/gsun_3.jpg", 0)]
    assert found.test.images[0].size == (5, 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg -1", r"train.txt, line 5: label '-1' is not an integer from 0"),
        ("a.jpg cat", r"train.txt, line 5: label 'cat' is not an integer"),
        ("a.jpg 1.0", r"line 5: label '1.0' is not"),
        ("a.jpg", r"train.txt, line 5: 'a.jpg' is not PATH LABEL"),
        ("img/dog/1.jpg 0", r"line 5: img/dog/1.jpg has label 0 here and 1 before"),
        ("../a.jpg 1", r"line 5: ../a.jpg is outside the data folder"),
        ("img/../../a.jpg 1", r"line 5: .* is outside the data folder"),
        ("/etc/a.jpg 1", r"line 5: /etc/a.jpg is outside the data folder"),
        ("a.jpg 3", r"no image of the train list has label 2, but a.jpg of the train list has 3"),
        ("a.jpg 999999999", "has 999999999; add some, or number the classes"),
        ("missing.jpg 1", r"missing.jpg cannot be read \(No such file"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    text_lists(tmp_path, TRAIN, VAL)
    write(tmp_path / "a.jpg")
    (tmp_path / "train.txt").write_text("".join(f"{x}\n" for x in [*TRAIN, line]))
    with pytest.raises(UserError, match=message):
        open_classification(str(tmp_path))


def test_a_class_of_val_that_train_lacks(tmp_path):
    text_lists(tmp_path, TRAIN, ["v.jpg 2"])
    with pytest.raises(
        UserError, match="no image of the train list has label 2, but v\\.jpg of the val list has 2"
    ):
        open_classification(str(tmp_path))
    (tmp_path / "val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt is empty"):
        open_classification(str(tmp_path))


# ---- iNaturalist


def inat(root, train, val, categories=((7, "ox"), (3, "hen")), year=2018):
    """``train`` and ``val`` map file names to category ids."""
    for split, rows in (("train", train), ("val", val)):
        content = {
            "images": [{"id": 10 + n, "file_name": name} for n, name in enumerate(rows)],
            "annotations": [
                {"id": n, "image_id": 10 + n, "category_id": c} for n, c in enumerate(rows.values())
            ][::-1],
            "categories": [{"id": i, "name": name} for i, name in categories],
        }
        for name in rows:
            write(root / name)
        (root / f"{split}{year}.json").write_text(json.dumps(content))
    return root


PLACE = "train_val2018/Aves"
IMAGES = {f"{PLACE}/7/b.jpg": 7, f"{PLACE}/3/a.jpg": 3}, {f"{PLACE}/3/c.jpg": 3}


def test_inaturalist_counts_categories_by_their_ids(tmp_path):
    found = open_classification(str(inat(tmp_path, *IMAGES)))
    assert found.classes == ["hen", "ox"]
    assert listed(found.train) == [(f"{PLACE}/7/b.jpg", 1), (f"{PLACE}/3/a.jpg", 0)]
    assert listed(found.test) == [(f"{PLACE}/3/c.jpg", 0)]
    names = [{"id": 3, "name": "Gallus"}, {"id": 7, "name": "Bos"}, {"id": 9, "name": "Ovis"}]
    (tmp_path / "categories.json").write_text(json.dumps(names))
    assert open_classification(str(tmp_path)).classes == ["Gallus", "Bos"]
    names[1]["name"] = "Gallus"
    (tmp_path / "categories.json").write_text(json.dumps(names))
    assert open_classification(str(tmp_path)).classes == ["Gallus (3)", "Gallus (7)"]
    (tmp_path / "categories.json").write_text(json.dumps(names[:1]))
    with pytest.raises(UserError, match=r"categories\.json has no category with id 7"):
        open_classification(str(tmp_path))


def change(root, split, key, index, **fields):
    path = root / f"{split}2018.json"
    content = json.loads(path.read_text())
    content[key][index].update(fields)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "fields", "message"),
    [
        ("annotations", {"category_id": 5}, "image 11 has category_id 5, which is not among"),
        ("annotations", {"category_id": "7"}, "category_id '7', which is not among"),
        ("annotations", {"image_id": 99}, r"image 11 \(.*a\.jpg\) has no annotation"),
        ("annotations", {"image_id": 10}, "image 10 is annotated with two categories"),
        ("annotations", {"image_id": []}, "is not a list of images, annotations and categories"),
        ("images", {"file_name": "../a.jpg"}, "image 10: ../a.jpg is outside the data folder"),
        ("images", {"file_name": 3}, "image 10: 3 is not a path"),
        ("images", {"file_name": "\ud800.jpg"}, "image 10: .* is not a path"),
        ("images", {"file_name": f"{PLACE}/3/a.jpg"}, "a.jpg is listed twice"),
        ("images", {"id": 12}, "image 12 .* has no annotation"),
        ("categories", {"id": 3}, "category id 3 is not an integer, or there twice"),
        ("categories", {"id": "7"}, "category id '7' is not an integer"),
        ("categories", {"id": 8}, "category_id 7, which is not among"),
    ],
)
def test_a_damaged_list_is_named(tmp_path, key, fields, message):
    inat(tmp_path, *IMAGES)
    change(tmp_path, "train", key, 0, **fields)
    with pytest.raises(UserError, match=message):
        open_classification(str(tmp_path))


def test_lists_that_do_not_fit_together(tmp_path):
    inat(tmp_path, *IMAGES)
    change(tmp_path, "val", "categories", 0, id=8)
    with pytest.raises(UserError, match="differ in their categories, first in id 7"):
        open_classification(str(tmp_path))
    (tmp_path / "val2018.json").write_text("{")
    with pytest.raises(UserError, match=r"val2018\.json is not JSON"):
        open_classification(str(tmp_path))
    (tmp_path / "val2018.json").write_text("[]")
    with pytest.raises(UserError, match=r"val2018\.json is not a list of images"):
        open_classification(str(tmp_path))
    inat(tmp_path, *IMAGES, categories=((3, "hen"), (7, "ox"), (8, "emu")))
    with pytest.raises(UserError, match="class emu has no image in train;"):
        open_classification(str(tmp_path))
    inat(tmp_path, *IMAGES, year=2019)
    with pytest.raises(UserError, match="lists of 2018 and 2019; leave one"):
        open_classification(str(tmp_path))


def test_folders_come_before_lists(tmp_path):
    text_lists(folders(tmp_path, train={"a": 2, "b": 2}, val={"a": 1}), TRAIN, VAL)
    assert open_classification(str(tmp_path)).classes == ["a", "b"]
