"""Classification data of every layout, and one clear line for everything that is wrong with it."""

import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from siambench.data.classification import open_classification
from siambench.data.images import describe, read_image_folder
from siambench.data.pictures import ArrayImages, ChosenImages, FileImages
from siambench.errors import UserError

rng = np.random.default_rng(0)


def write(path, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def folders(root, **splits):
    """``folders(root, train={"ant": 3})`` writes root/train/ant/{0,1,2}.jpg."""
    for split, classes in splits.items():
        for name, count in classes.items():
            for number in range(count):
                write(root / split / name / f"{number}.jpg")
    return root


def text_lists(root, train, val, image_root="", names=("train.txt", "val.txt")):
    for file, lines in zip(names, (train, val), strict=True):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            write(root / image_root / line.rsplit(None, 1)[0])
    return root


def listed(split):
    return [(split.images.name(n), int(split.labels[n])) for n in range(len(split.images))]


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


# ---- ImageNet's layout


def test_image_folders_keep_their_records_fingerprint(tmp_path):
    root = folders(tmp_path / "set", train={"ant": 3, "bee": 2}, val={"ant": 1, "bee": 1})
    found = open_classification(str(root))
    names = [f"train/ant/{n}.jpg" for n in range(3)] + [f"train/bee/{n}.jpg" for n in range(2)]
    assert listed(found.train) == list(zip(names, [0, 0, 0, 1, 1], strict=True))
    assert (found.train.name, found.test.name, found.classes) == ("train", "val", ["ant", "bee"])
    assert found.train.labels.dtype == np.int64
    assert not found.multilabel
    assert not found.same

    def row(name, label):  # the last number: of the file's last 4 KiB and its size
        data = (root / name).read_bytes()
        mark = hashlib.blake2b(data[-4096:] + len(data).to_bytes(8, "little"), digest_size=8)
        return [name, len(data), label, int.from_bytes(mark.digest(), "little")]

    rows = {
        split: [row(n, y) for n, y in listed(part)]
        for split, part in (("train", found.train), ("val", found.test))
    }

    def digest(value):  # canonical JSON, as docs/formats.md has it
        return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()

    assert found.info.fingerprint == digest({s: digest(r) for s, r in rows.items()})
    lists = {s: read_image_folder(root, s) for s in ("train", "val")}
    assert found.info == describe(root, lists)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.train.images[4], np.asarray(Image.open(root / names[4])))
    assert again.train.images.stamp() == found.train.images.stamp()


def test_test_stands_in_for_val(tmp_path):
    root = folders(tmp_path, train={"a": 2, "b": 2}, test={"a": 1})
    assert open_classification(str(root)).test.name == "test"
    folders(root, val={"b": 1})
    assert open_classification(str(root)).test.name == "val"
    shutil.rmtree(root / "val")
    shutil.rmtree(root / "test")
    with pytest.raises(UserError, match="has train/ but none of val, valid, validation, test"):
        open_classification(str(root))


def test_an_image_replaced_by_another_of_its_size_is_noticed(tmp_path):
    """With the old time of modification: by what is in it, in records as in the cache."""
    root = folders(tmp_path, train={"a": 2, "b": 2}, val={"a": 1, "b": 1})
    path = root / "train" / "a" / "0.bmp"
    (root / "train" / "a" / "0.jpg").unlink()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    before, status = open_classification(str(root)), path.stat()
    Image.new("RGB", (8, 8), (0, 255, 0)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = open_classification(str(root))
    assert path.stat().st_size == status.st_size
    assert after.info.fingerprint != before.info.fingerprint
    assert after.train.images.stamp() != before.train.images.stamp()


def test_linked_folders_are_followed_and_hidden_ones_are_not(tmp_path):
    """As torchvision's ImageFolder; a link to a folder above it is not gone round for ever."""
    root = folders(tmp_path / "set", train={"a": 2, "b": 2}, val={"a": 1, "b": 1})
    more = folders(tmp_path / "more", train={"a": 3})
    (root / "train" / "a" / "linked").symlink_to(more / "train" / "a")
    (root / "train" / "a" / "round").symlink_to(root / "train" / "a")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    found = open_classification(str(root))
    assert found.classes == ["a", "b"]
    assert np.bincount(found.train.labels).tolist() == [5, 2]


def test_class_names_are_utf8(tmp_path):
    root = folders(tmp_path, train={"a": 2, "b": 2}, val={"a": 1, "b": 1})
    for split in ("train", "val"):
        os.rename(root / split / "b", os.path.join(os.fsencode(root / split), b"caf\xe9"))
    with pytest.raises(UserError, match=r"class b'caf\\xe9' is not UTF-8"):
        open_classification(str(root))


def test_the_embedded_scenes_are_known_by_the_folder_that_is_named(scenes):
    assert open_classification(str(scenes / "imagenet")).test.name == "val"
    voc = open_classification(str(scenes))
    assert (voc.train.name, voc.test.name, voc.multilabel) == ("trainval", "test", True)
    with pytest.raises(UserError, match="looks like COCO"):
        open_classification(str(scenes / "coco"))


def test_folders_beside_a_devkit_are_image_folders(tmp_path):
    folders(tmp_path, train={"a": 2, "b": 2}, val={"a": 1})
    (tmp_path / "VOCdevkit" / "VOC2007").mkdir(parents=True)
    assert open_classification(str(tmp_path)).test.name == "val"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": {"a": 2}, "val": {"a": 1}}, "has the one class a; at least two"),
        ({"train": {"a": 2, "b": 1}, "val": {"c": 1}}, "val/c is a class that the other split"),
        ({"": {"a": 2}}, "has the one class a"),
        ({"": {"a": 1, "b": 1}}, "every class has a single image"),
        ({"": {"train": 2, "val": 2}}, "no data set of a known layout; looked for train/CLASS"),
        ({"x/train": {"a": 2}, "y": {"a": 2}}, "holds data sets, such as .*x; name one"),
        ({}, "no data set of a known layout"),
    ],
)
def test_folders_that_cannot_be_learnt_from(tmp_path, splits, message):
    folders(tmp_path, **splits)
    with pytest.raises(UserError, match=message):
        open_classification(str(tmp_path))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"data folder: .*nowhere does not exist"):
        open_classification(str(tmp_path / "nowhere"))


def test_an_empty_class_folder_is_named(tmp_path):
    folders(tmp_path, train={"a": 2, "b": 2}, val={"a": 1})
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(UserError, match=r"class folder .*train/c has no images"):
        open_classification(str(tmp_path))


def test_a_class_whose_images_are_all_bad(tmp_path):
    folders(tmp_path, train={"a": 2, "b": 1}, val={"a": 1, "b": 1})
    bad = tmp_path / "train/b/0.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError, match=r"train/b/0\.jpg cannot be decoded"):
        open_classification(str(tmp_path))
    with pytest.raises(UserError, match="class b has no image in train but 1 in val"):
        open_classification(str(tmp_path), skip_bad=True)
    write(tmp_path / "train/b/1.jpg")
    found = open_classification(str(tmp_path), skip_bad=True)
    assert found.info.counts == {"train": 3, "val": 2, "classes": 2, "skipped": 1}
    assert found.train.labels.tolist() == [0, 0, 1]


# ---- a flat folder


def test_a_flat_folder_is_divided_the_same_way_each_time(tmp_path, capsys):
    root = folders(tmp_path / "flat", **{"": {"a": 11, "b": 4, "c": 1}})
    found = open_classification(str(root))
    assert f"({len(found.train.images)} train, 3 test)" in said(capsys)
    assert np.bincount(found.test.labels, minlength=3).tolist() == [2, 1, 0]
    every = listed(found.train) + listed(found.test)
    assert sorted(every) == [
        (f"{c}/{n}.jpg", y)
        for y, c in enumerate("abc")
        for n in sorted(range((11, 4, 1)[y]), key=str)
    ]
    assert found.info.counts == {"train": 13, "test": 3, "classes": 3, "skipped": 0}
    moved = shutil.copytree(root, tmp_path / "else" / "flat")
    again = open_classification(str(moved))
    assert (listed(again.test), again.info) == (listed(found.test), found.info)


def test_a_flat_folder_may_be_both(tmp_path):
    root = folders(tmp_path, **{"": {"a": 2, "b": 3}})
    found = open_classification(str(root), flat="same")
    assert found.same
    assert found.test is found.train
    assert found.info.counts == {"train": 5, "classes": 2, "skipped": 0}


# ---- splits that share files


def test_shared_files_are_counted_and_the_first_is_named(tmp_path, capsys):
    root = folders(tmp_path, train={"a": 3, "b": 3}, val={"a": 2, "b": 2})
    shutil.copy(root / "train/b/2.jpg", root / "val/a/1.jpg")
    shutil.copy(root / "train/a/0.jpg", root / "val/b/0.jpg")
    shutil.copy(root / "train/a/0.jpg", root / "train/a/1.jpg")  # within a split: no matter
    # equal in size and in the last bytes, but not equal: no pair
    content = b"P6 64 64 255\n" + bytes(64 * 64 * 3)
    (root / "train/a/z.ppm").write_bytes(content)
    (root / "val/a/z.ppm").write_bytes(content[:20] + b"\1" + content[21:])
    assert not open_classification(str(root)).same
    assert (
        "warning: 2 of 5 images of val are in train too and make the score too good, e.g. "
        "val/a/1.jpg = train/b/2.jpg"
    ) in said(capsys)


def test_disjoint_splits_are_not_warned_of(tmp_path, capsys):
    open_classification(str(folders(tmp_path, train={"a": 3, "b": 3}, val={"a": 2, "b": 2})))
    assert "warning" not in said(capsys)


@pytest.mark.parametrize("link", [False, True])
def test_one_and_the_same_set_in_both_splits(tmp_path, link, capsys):
    root = folders(tmp_path, train={"a": 3, "b": 2})
    if link:
        (root / "val").symlink_to("train")
    else:
        shutil.copytree(root / "train", root / "val")
    found = open_classification(str(root))
    assert found.same
    assert found.test.name == "val"
    assert found.test.images is found.train.images
    assert "are the same 5 images" in said(capsys)
    if not link:
        (root / "val/b/1.jpg").unlink()
        assert not open_classification(str(root)).same
        assert "warning: 4 of 4 images" in said(capsys)


# ---- files by number


def test_the_stamp_sees_size_time_name_and_order(tmp_path):
    names = [f"{n}.jpg" for n in "ab"] + ["ü\udce9 x.jpg"]
    for name in names:
        write(tmp_path / name)

    def stamp(paths=names):
        return FileImages(tmp_path, paths).stamp()

    first = stamp()
    assert stamp() == first
    assert stamp(names[::-1]) != first
    status = (tmp_path / "a.jpg").stat()
    os.utime(tmp_path / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert stamp() != first
    os.utime(tmp_path / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stamp() == first
    images = FileImages(tmp_path, names)
    assert [images.name(n) for n in range(3)] == names
    assert images[2].size == (5, 6)
    (tmp_path / "a.jpg").unlink()
    assert images.name(0) == "a.jpg"
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        stamp()


# ---- some of them


def test_chosen_files_are_a_set_of_their_own(tmp_path):
    """Their stamp is that of these files alone, so that what is added or changed elsewhere is no matter."""
    names = [f"{n}.jpg" for n in "abcdé"]
    for name in names:
        write(tmp_path / name)
    rows = [4, 0, 2, 2]
    chosen = ChosenImages(FileImages(tmp_path, names), rows)
    alone = FileImages(tmp_path, [names[n] for n in rows])
    assert [chosen.name(n) for n in range(len(chosen))] == [alone.name(n) for n in range(4)]
    for n in range(4):
        np.testing.assert_array_equal(chosen[n], alone[n])
    assert (chosen.stamp(), chosen.digests([3, 0])) == (alone.stamp(), alone.digests([3, 0]))
    np.testing.assert_array_equal(chosen.marks(), alone.marks())
    again = pickle.loads(pickle.dumps(chosen))
    assert (again.stamp(), again.name(1)) == (chosen.stamp(), "a.jpg")
    stamps = [ChosenImages(FileImages(tmp_path, names), rows[::-1]).stamp()]
    write(tmp_path / "b.jpg", (7, 7))
    write(tmp_path / "f.jpg")
    around = ["f.jpg", *names]
    assert ChosenImages(FileImages(tmp_path, around), [5, 1, 3, 3]).stamp() == chosen.stamp()
    write(tmp_path / "c.jpg", (7, 7))
    stamps.append(ChosenImages(FileImages(tmp_path, around), [5, 1, 3, 3]).stamp())
    assert len({*stamps, chosen.stamp()}) == 3


def test_chosen_arrays_and_a_choice_of_a_choice():
    pixels = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
    images = ArrayImages("noise", pixels)
    twice = ChosenImages(ChosenImages(images, [5, 3, 1]), np.array([2, 0]))
    alone = ArrayImages("noise", pixels[[1, 5]])
    assert [twice.name(n) for n in range(2)] == ["noise 1", "noise 5"]
    np.testing.assert_array_equal(twice[1], pixels[5])
    assert (twice.stamp(), twice.digests([1])) == (alone.stamp(), alone.digests([1]))
    np.testing.assert_array_equal(twice.marks(), alone.marks())
    assert ChosenImages(images, range(6)).stamp() == images.stamp()
    assert len(ChosenImages(images, [])) == 0
    with pytest.raises(IndexError):
        ChosenImages(images, [6])


# ---- VOC 2007


def test_voc07_is_multi_label(scenes):
    found = open_classification(str(scenes / "VOCdevkit"))
    main = scenes / "VOCdevkit/VOC2007/ImageSets/Main"
    ids = (main / "test.txt").read_text().split()
    assert [found.test.images.name(n) for n in range(len(ids))] == [
        f"JPEGImages/{i}.jpg" for i in ids
    ]
    assert found.train.labels.dtype == np.int8
    assert set(np.unique(found.train.labels)) <= {-1, 0, 1}
    for column, name in enumerate(found.classes):
        labels = np.loadtxt(main / f"{name}_trainval.txt", dtype=str)[:, 1].astype(int)
        np.testing.assert_array_equal(found.train.labels[:, column], labels)
    assert found.test.images[0].mode == "RGB"


def test_a_voc_class_without_a_training_image(scenes, tmp_path):
    copy = shutil.copytree(scenes / "VOCdevkit", tmp_path / "VOCdevkit")
    name = open_classification(str(scenes)).classes[0]
    path = copy / f"VOC2007/ImageSets/Main/{name}_trainval.txt"
    path.write_text("".join(f"{line.split()[0]} -1\n" for line in path.read_text().splitlines()))
    with pytest.raises(UserError, match=f"class {name} has no image in trainval but"):
        open_classification(str(tmp_path))
