"""Tables of several labels an image: pandas reads them too, and every mistake is a line."""

import shutil

import numpy as np
import pandas as pd
import pytest
from test_classification_data import folders, text_lists, write

from siambench.data.classification import open_classification
from siambench.data.multilabel_csv import IMAGE_COLUMNS
from siambench.errors import UserError

COLUMNS = ["image,cat,dog", "a.jpg,1,0", "b.jpg,,1", "c.jpg,0,0"], ["image,cat,dog", "v.jpg,1,0"]
NAMES = ["image,labels", "a.jpg,ox; emu", "b.jpg,cat|ox|", "c.jpg,"], ["image,labels", "v.jpg,emu"]


def tables(root, train, val, names=("train.csv", "val.csv")):
    """Write both tables, and an image for every path of theirs that is usual."""
    for file, lines in zip(names, (train, val), strict=True):
        (root / file).write_text("".join(f"{line}\n" for line in lines))
        for line in lines[1:]:
            if (
                (path := line.split(",")[0]).endswith(".jpg")
                and ".." not in path
                and path[0] != "/"
            ):
                write(root / path)
    return root


def names_of(split):
    return [split.images.name(n) for n in range(len(split.images))]


@pytest.mark.parametrize("header", ["image", "Path", "image_id"])
@pytest.mark.parametrize("other", ["val", "valid", "test"])
def test_a_column_per_class_is_as_pandas_reads_it(tmp_path, header, other):
    """Unknown cells make pandas write floats: 1.0, 0.0 and nothing."""
    rng, classes = np.random.default_rng(0), ["dog, big", "cat", "Ünder"]
    for split, order in (("train", classes), (other, classes[::-1])):
        paths = [f"pictures/{split} {n}.jpg" for n in range(6)]
        values = rng.choice([0.0, 1.0, np.nan], (6, 3))
        values[:3] = np.eye(3)
        frame = pd.DataFrame(values, columns=order)
        frame.insert(0, header, paths)
        frame.to_csv(tmp_path / f"{split}.csv", index=False, encoding="utf-8-sig")
        for path in paths:
            write(tmp_path / path)
    found = open_classification(str(tmp_path))
    assert found.classes == classes
    assert found.multilabel
    assert (found.train.name, found.test.name) == ("train", other)
    assert found.info.counts == {"train": 6, other: 6, "classes": 3, "skipped": 0}
    for split in (found.train, found.test):
        frame = pd.read_csv(tmp_path / f"{split.name}.csv").set_index(header)[classes]
        np.testing.assert_array_equal(split.labels, frame.replace(0, -1).fillna(0).to_numpy())
        assert split.labels.dtype == np.int8
        assert names_of(split) == list(frame.index)
        assert split.images[5].size == (5, 6)


@pytest.mark.parametrize("header", [*IMAGE_COLUMNS, "FileName"])
def test_labels_are_names_too(tmp_path, header):
    train, val = ([f"{header},Labels", *part[1:]] for part in NAMES)
    found = open_classification(str(tables(tmp_path, train, val)))
    assert found.classes == ["cat", "emu", "ox"]
    assert found.train.labels.tolist() == [[-1, 1, 1], [1, -1, 1], [-1, -1, -1]]
    assert found.test.labels.tolist() == [[-1, 1, -1]]
    assert found.train.labels.dtype == np.int8


def test_minus_one_is_absent_where_nothing_is_0(tmp_path):
    """CelebA's way; a line that is blank is no image, and an image may be listed twice."""
    train = ["image_id,Bald,Male", "a.jpg,-1, 1", "b.jpg,1,-1", "", "c.jpg,,-1", "a.jpg,-1,1"]
    found = open_classification(str(tables(tmp_path, train, ["image_id,Bald,Male", "v.jpg,1,1"])))
    assert found.train.labels.tolist() == [[-1, 1], [1, -1], [0, -1], [-1, 1]]
    assert found.test.labels.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,1,2", r"train\.csv, line 5: dog is '2', not 1 \(present\), 0 \(absent\) or empty"),
        ("d.jpg,yes,1", "line 5: cat is 'yes', not 1"),
        ("d.jpg,1", "line 5: 2 cells, but the header has 3"),
        ("d.jpg,1,0,0", "line 5: 4 cells, but the header has 3"),
        ('"d.jpg,1,0', r"line 5: not CSV \(.*\); mend the line"),
        ("d.jpg,1,-1", "line 5: dog is -1, where other cells have 0 for absent; leave cells empty"),
        ("a.jpg,1,1", "line 5: a.jpg has other labels than in line 2"),
        ("../d.jpg,1,0", r"line 5: \.\./d\.jpg is outside the data folder"),
        ("/etc/d.jpg,1,0", r"line 5: /etc/d\.jpg is outside the data folder"),
        (",1,0", "line 5: '' is not a path"),
        (
            "d.jpeg,1,0\nd,1,0",
            r"line 5: image .*d\.jpeg does not exist \(nor do 1 more\); paths are to be relative to",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    tables(tmp_path, [*COLUMNS[0], line], COLUMNS[1])
    with pytest.raises(UserError, match=message):
        open_classification(str(tmp_path))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([], COLUMNS[1], r"train\.csv is empty; its first line is to be a header"),
        (
            COLUMNS[0][1:],
            COLUMNS[1],
            r"train\.csv: 'a.jpg,1,0' is not the header of a table of lab",
        ),
        ([",image,cat,dog"], COLUMNS[1], "',image,cat,dog' is not the header"),
        (["image;cat;dog"], COLUMNS[1], "is not the header .* separated by commas"),
        (["image,label", "a.jpg,x"], COLUMNS[1], "with one label an image, write train.txt"),
        (COLUMNS[0][:1], COLUMNS[1], r"train\.csv has a header but no image"),
        (COLUMNS[0], COLUMNS[1][:1], r"val\.csv has a header but no image"),
        (COLUMNS[0], COLUMNS[1][1:], r"val\.csv: 'v.jpg,1,0' is not the header"),
        (["image,cat,cat", "a.jpg,1,0"], COLUMNS[1], "column 3 is named 'cat' as another is"),
        (["image,cat,", "a.jpg,1,0"], COLUMNS[1], "column 3 has no name"),
        (
            COLUMNS[0],
            ["image,dog,emu", "v.jpg,1,0"],
            r"train.csv has the column cat, which .*val.csv",
        ),
        (COLUMNS[0], ["image,cat,dog,emu", "v.jpg,1,0,0"], "val.csv has the column emu, which"),
        (COLUMNS[0], ["image,cat,dog", "v.jpg,1,-1"], r"val\.csv, line 2: dog is -1, where other"),
        (
            ["image,cat,dog", "a.jpg,1,", "b.jpg,,1"],
            COLUMNS[1],
            "has no 0: empty cells are not known",
        ),
        (["image,cat,dog", "a.jpg,1,0"], COLUMNS[1], "class dog has no image in train;"),
        (["image,cat", "a.jpg,1", "b.jpg,0"], ["image,cat", "v.jpg,1"], "has the one class cat"),
        (COLUMNS[0], NAMES[1], "one has a column per class, the other `labels`; use one form"),
        (NAMES[0], COLUMNS[1], "one has a column per class, the other `labels`; use one form"),
        (
            NAMES[0],
            ["image,labels", "v.jpg,emu;hen"],
            r"val\.csv, line 2: no image of .*class 'hen'",
        ),
        (["image,labels", "a.jpg,"], NAMES[1], "train.csv: no image has a class"),
        ([*NAMES[0], "c.jpg,ox"], NAMES[1], "line 5: c.jpg has other labels than in line 4"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, train, val, message):
    tables(tmp_path, train, val)
    with pytest.raises(UserError, match=message):
        open_classification(str(tmp_path))


def test_a_table_alone(tmp_path):
    tables(tmp_path, *COLUMNS)
    (tmp_path / "val.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv: there is no table to test on; add val\.csv"):
        open_classification(str(tmp_path))


def test_bad_images_are_named_or_left_out_with_their_labels(tmp_path):
    tables(tmp_path, [*COLUMNS[0], "d.jpg,1,1"], COLUMNS[1])
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:100])
    with pytest.raises(UserError, match=r"a\.jpg cannot be decoded .*--skip_bad"):
        open_classification(str(tmp_path))
    found = open_classification(str(tmp_path), skip_bad=True)
    assert names_of(found.train) == ["b.jpg", "c.jpg", "d.jpg"]
    assert found.train.labels.tolist() == [[0, 1], [-1, -1], [1, 1]]
    assert found.info.counts == {"train": 3, "val": 1, "classes": 2, "skipped": 1}


def test_the_fingerprint_is_of_images_labels_and_class_names(tmp_path):
    (tmp_path / "set").mkdir()
    root = tables(tmp_path / "set", *COLUMNS)
    first = open_classification(str(root)).info
    moved = shutil.copytree(root, tmp_path / "else" / "set")
    assert open_classification(str(moved)).info == first
    changed = set()
    for old, new in (("c.jpg,0,0", "c.jpg,0,"), ("cat", "cow"), ("b.jpg", "x.jpg")):
        copy = shutil.copytree(root, tmp_path / new / "set")
        shutil.copy(root / "b.jpg", copy / "x.jpg")
        for table in ("train.csv", "val.csv"):
            (copy / table).write_text((root / table).read_text().replace(old, new))
        changed.add(open_classification(str(copy)).info.fingerprint)
    assert len(changed | {first.fingerprint}) == 4
    # the fingerprint of the same cells in another spelling is the same
    for table in ("train.csv", "val.csv"):
        text = (moved / table).read_text().replace(",1", ",1.0").replace(",0", ',"0"')
        (moved / table).write_text(text)
    assert open_classification(str(moved)).info == first


def test_which_layout_is_meant(tmp_path, capsys):
    """Tables of labels come first; tables of something else do not hide folders and lists."""
    root = folders(tmp_path, train={"x": 2, "y": 2}, val={"x": 1, "y": 1})
    tables(root, ["filename,label", "a.jpg,x"], ["filename,label", "v.jpg,x"])
    assert open_classification(str(root)).classes == ["x", "y"]
    tables(root, ["id,width", "1,640"], ["id,width", "2,640"])
    assert open_classification(str(root)).classes == ["x", "y"]
    tables(root, *COLUMNS)
    assert open_classification(str(root)).classes == ["cat", "dog"]
    assert ", tables: 3 train and 1 val images, 2 classes, several" in capsys.readouterr().err
    (root / "val.csv").unlink()
    assert open_classification(str(root)).classes == ["x", "y"]


def test_places205s_lists_are_not_tables(tmp_path):
    lists = ["train_places205.csv", "val_places205.csv"]
    root = text_lists(tmp_path, ["a/x/1.jpg 0", "a/y/2.jpg 1"], ["a/x/3.jpg 0"], names=lists)
    found = open_classification(str(root))
    assert (found.classes, found.multilabel) == (["x", "y"], False)
    tables(root, *COLUMNS)
    assert open_classification(str(root)).multilabel
