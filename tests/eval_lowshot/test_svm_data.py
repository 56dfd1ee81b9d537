"""Opening data sets for the SVMs, and one clear line for everything that is wrong with them."""

import shutil

import numpy as np
import pytest
from sklearn.preprocessing import label_binarize
from small_voc import COLOURS, make_small_folder, make_small_voc

from eval_lowshot import VERBS
from eval_lowshot.config import SvmConfig, cost_values
from eval_lowshot.data import open_data, targets
from siambench.config import make_config, overridden, protocol_of
from siambench.errors import UserError


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_small_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def own_voc(voc, tmp_path):
    return shutil.copytree(voc, tmp_path / "copy")


def config(root, **fields):
    return SvmConfig(backbone="", data=str(root), **fields)


def main_file(root, name):
    return root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / name


def set_labels(root, name, labels):
    path = main_file(root, name)
    ids = [line.split()[0] for line in path.read_text().splitlines()]
    lines = [f"{image} {label}" for image, label in zip(ids, labels, strict=True)]
    path.write_text("\n".join(lines))


def test_labels_and_images_are_in_the_lists_order(voc):
    data = open_data(config(voc))
    assert data.classes == sorted(COLOURS)
    np.testing.assert_array_equal(data.train.labels, np.load(voc / "labels-trainval.npy"))
    np.testing.assert_array_equal(data.test.labels, np.load(voc / "labels-test.npy"))
    assert data.test.images.name(1) == "JPEGImages/test0001.jpg"
    assert data.multilabel
    assert data.left_out == {}
    assert data.info.counts == {"trainval": 48, "test": 30, "classes": 3, "skipped": 0}
    assert open_data(config(voc / "VOCdevkit")).info == data.info


def test_the_fingerprint_sees_a_changed_label(voc, own_voc):
    labels = np.load(own_voc / "labels-test.npy")[:, 0].copy()
    labels[0] = -labels[0] or 1
    set_labels(own_voc, "blue_test.txt", labels)
    assert open_data(config(own_voc)).info.fingerprint != open_data(config(voc)).info.fingerprint


def test_difficult_images_in_training():
    labels = np.array([[1, -1], [0, 1], [-1, 0]], dtype=np.int8)
    assert targets(labels, [0], "negative").tolist() == [[1], [-1], [-1]]
    assert targets(labels, [1, 0], "drop").tolist() == [[-1, 1], [1, 0], [0, -1]]
    assert config("x").difficult_train == "negative"
    assert config("x", mode="lowshot").difficult_train == "drop"
    assert config("x", mode="lowshot", difficult_train="negative").difficult_train == "negative"


def test_single_labels_are_one_against_the_rest():
    labels = np.random.default_rng(0).integers(0, 5, 50)
    wanted = label_binarize(labels, classes=range(5), neg_label=-1)
    for difficult in ("negative", "drop"):
        found = targets(labels, [4, 0, 2], difficult)
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, wanted[:, [4, 0, 2]])


def truncate(root):
    image = root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "trainval0003.jpg"
    image.write_bytes(image.read_bytes()[:400])
    return "trainval0003.jpg"


def test_a_truncated_image_is_named_or_left_out(own_voc):
    name = truncate(own_voc)
    with pytest.raises(UserError, match=name):
        open_data(config(own_voc))
    data = open_data(config(own_voc, skip_bad=True))
    assert data.info.counts == {"trainval": 47, "test": 30, "classes": 3, "skipped": 1}
    assert not any(name in data.train.images.name(row) for row in range(47))
    np.testing.assert_array_equal(
        data.train.labels, np.delete(np.load(own_voc / "labels-trainval.npy"), 3, axis=0)
    )


def test_wrong_path(tmp_path):
    with pytest.raises(UserError, match="no data set of a known layout"):
        open_data(config(tmp_path))
    with pytest.raises(UserError, match=r"data folder: .*nowhere does not exist"):
        open_data(config(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainval0000 2\n", "line 1: 'trainval0000 2' is not"),
        ("trainval0000\n", "line 1: 'trainval0000' is not"),
        ("trainval0000 1\n", "no label for trainval0001 \\(47 of 48 missing\\)"),
    ],
)
def test_damaged_class_list(own_voc, text, message):
    main_file(own_voc, "red_trainval.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_data(config(own_voc))


def test_splits_with_different_classes(own_voc):
    main_file(own_voc, "red_test.txt").unlink()
    with pytest.raises(
        UserError, match=r"trainval has the classes .*red and test has blue, green;"
    ):
        open_data(config(own_voc))


@pytest.mark.parametrize(("label", "lacking"), [(-1, "positive"), (1, "negative"), (0, "positive")])
def test_class_absent_from_test(own_voc, label, lacking):
    set_labels(own_voc, "green_test.txt", [label] * 30)
    with pytest.raises(UserError, match=f"class green has no {lacking} image in test"):
        open_data(config(own_voc))


def test_full_needs_three_of_each(own_voc):
    set_labels(own_voc, "green_trainval.txt", [1, 1] + [-1] * 46)
    with pytest.raises(UserError, match="class green has 2 positive and 46 negative images"):
        open_data(config(own_voc))


def test_low_shot_names_the_scarcest_class_and_the_largest_k(own_voc):
    for name in COLOURS:
        set_labels(own_voc, f"{name}_trainval.txt", [1] * 20 + [-1] * 28)
    set_labels(own_voc, "green_trainval.txt", [1] * 20 + [0] * 2 + [-1] * 26)
    low = {"mode": "lowshot", "negatives_per_positive": 4}
    with pytest.raises(UserError) as caught:
        open_data(config(own_voc, **low, k=[1, 8]))
    assert str(caught.value) == (
        "class green has 20 positive and 26 negative images in trainval (2 more such classes); k = 8 "
        "needs 8 and 32 (4 per positive): keep --k to at most 6, lower --negatives_per_positive, or "
        "leave such classes out by --skip_classes"
    )
    open_data(config(own_voc, **low, k=[6]))
    with pytest.raises(UserError, match=r"class green .* k = 7 needs 7 and 28"):
        open_data(config(own_voc, **low, k=[7]))
    open_data(config(own_voc, **low, k=[7], difficult_train="negative"))
    with pytest.raises(UserError, match=r"\(40 per positive\): use more images, lower"):
        open_data(config(own_voc, mode="lowshot", k=[1], negatives_per_positive=40))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"costs": []}, "--costs"),
        ({"costs": [1.0, 0.0]}, "--costs"),
        ({"costs": [1.0, 1e-46]}, "--costs"),
        ({"costs": [1e5]}, "--costs"),
        ({"costs": [float("nan")]}, "--costs"),
        ({"costs": [1.0, 1.0]}, "--costs"),
        ({"k": [0, 1]}, "--k"),
        ({"k": []}, "--k"),
        ({"samples": 0}, "--samples"),
        ({"negatives_per_positive": 0}, "--negatives_per_positive"),
        ({"samples_dir": "given"}, "--samples_dir is given; it must be left out with --mode full"),
        ({"layers": []}, "--layers"),
        ({"layers": ["avgpool", "avgpool"]}, "--layers"),
        ({"transform": "centercrop", "resize": 0}, "--resize"),
        ({"size": 8}, "--size"),
    ],
)
def test_values_that_cannot_work(voc, fields, message):
    with pytest.raises(UserError, match=message):
        open_data(config(voc, **fields))


def test_named_costs():
    """FAIR: ten powers of 10 and 16 of 0.5; by default two and the 16; mmselfsup three and the 16."""
    lengths = {
        name: len(cost_values(config("x", costs=name)))
        for name in ("fair", "fair-default", "vissl", "vissl-places", "mmselfsup", "virtex")
    }
    assert list(lengths.values()) == [26, 18, 11, 6, 19, 4]
    fair = cost_values(config("x", costs="fair"))
    assert len(set(fair)) == 26
    assert (min(fair), max(fair)) == (1e-7, 100.0)
    assert 0.5**4 in fair
    assert 0.5**19 in fair
    assert cost_values(config("x", costs=[3.0, 1.0])) == [3.0, 1.0]
    assert cost_values(config("x", costs=2)) == [2.0]


def test_presets():
    verb = VERBS["svm"]
    low = {"mode": "lowshot", "samples": 5}
    wanted = {
        "voc07-svm": {"mode": "full", "resize": 256, "difficult_train": "negative"},
        "voc07-lowshot": {
            **low,
            "k": [1, 2, 4, 8, 16, 32, 64, 96],
            "negatives_per_positive": None,
            "difficult_train": "drop",
        },
        "places205-lowshot": {**low, "k": [10, 100], "resize": 0, "skip_classes": False},
        "inat18-lowshot": {**low, "k": [1, 2, 4, 8], "resize": 0, "skip_classes": True},
    }
    assert set(verb.preset_files()) == set(wanted)
    for name, values in wanted.items():
        made = make_config(verb, {"preset": name, "backbone": "b", "data": "d"})
        assert {field: getattr(made, field) for field in values} == values
        assert overridden(made, "svm") == []


def test_settings_that_do_nothing_are_not_in_the_protocol():
    full = protocol_of(config("x"))
    assert {"k", "samples", "negatives_per_positive", "samples_dir"}.isdisjoint(full)
    assert full == protocol_of(config("x", k=[3], samples=2, negatives_per_positive=4))
    low = protocol_of(config("x", mode="lowshot"))
    assert {"k", "samples", "negatives_per_positive", "solver", "skip_classes"} <= set(low)
    given = protocol_of(config("x", mode="lowshot", samples_dir="here"))
    assert given == protocol_of(
        config("x", mode="lowshot", samples_dir="there", negatives_per_positive=3, download=True)
    )
    assert {"k", "samples"} <= set(given)


def test_skipped_classes_of_several_labels_are_columns(own_voc, capsys):
    set_labels(own_voc, "green_test.txt", [-1] * 30)
    for mode in ("full", "lowshot"):
        low = {"mode": mode, "k": [2], "negatives_per_positive": 2}
        with pytest.raises(
            UserError, match=r"green has no positive .*, or leave .* --skip_classes"
        ):
            open_data(config(own_voc, **low))
        data = open_data(config(own_voc, **low, skip_classes=True))
        assert data.classes == ["blue", "red"]
        assert data.left_out == {
            "green": "has no positive image in test, so it has no average precision"
        }
        assert "1 of 3 classes, e.g. green, which has no positive" in capsys.readouterr().err
        wanted = np.load(own_voc / "labels-trainval.npy")[:, [0, 2]]
        np.testing.assert_array_equal(data.train.labels, wanted)
        assert data.test.labels.shape == (30, 2)
        assert data.info.counts == {
            "trainval": 48, "test": 30, "classes": 2, "skipped": 0, "classes_left_out": 1,
        }  # fmt: skip
        assert data.numbers == [0, 2]


def test_a_class_without_any_training_image_can_be_left_out(own_voc):
    set_labels(own_voc, "red_trainval.txt", [-1] * 48)
    with pytest.raises(UserError, match="class red has 0 positive and 48 negative images"):
        open_data(config(own_voc))
    assert open_data(config(own_voc, skip_classes=True)).classes == ["blue", "green"]


def test_the_default_number_of_negatives_is_classes_less_one(own_voc):
    for name in COLOURS:
        set_labels(own_voc, f"{name}_trainval.txt", [1] * 20 + [-1] * 28)
    open_data(config(own_voc, mode="lowshot", k=[14]))
    with pytest.raises(UserError, match=r"k = 15 needs 15 and 30 \(2 per positive\)"):
        open_data(config(own_voc, mode="lowshot", k=[15]))


def test_single_labels(tmp_path):
    root = make_small_folder(tmp_path, train=[5, 3, 4], val=[2, 1, 1])
    data = open_data(config(root, mode="lowshot", k=[3]))
    assert not data.multilabel
    assert data.train.labels.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    with pytest.raises(UserError) as caught:
        open_data(config(root, mode="lowshot", k=[1, 4]))
    assert str(caught.value) == (
        "class c1 has 3 images in train; k = 4 needs 4: keep --k to at most 3, or leave such classes "
        "out by --skip_classes"
    )
    open_data(config(root))


def test_full_needs_three_of_a_single_label(tmp_path):
    root = make_small_folder(tmp_path, train=[5, 3, 2], val=[2, 1, 1])
    with pytest.raises(UserError, match=r"class c2 has 2 images in train; 3-fold .* needs 3: "):
        open_data(config(root))
    assert open_data(config(root, skip_classes=True)).classes == ["c0", "c1"]


def test_skipped_classes_of_single_labels_take_their_images_along(tmp_path):
    root = make_small_folder(tmp_path, train=[5, 2, 1, 4, 6], val=[2, 1, 1, 2, 0])
    low = {"mode": "lowshot", "k": [1, 4]}
    line = "class c2 has 1 images in train .2 more such classes.; k = 4 needs 4: keep --k"
    with pytest.raises(UserError, match=line):
        open_data(config(root, **low))
    data = open_data(config(root, **low, skip_classes=True))
    assert data.classes == ["c0", "c3"]
    assert data.left_out == {
        "c1": "has 2 images in train",
        "c2": "has 1 images in train",
        "c4": "has no positive image in val, so it has no average precision",
    }
    assert data.train.labels.tolist() == [0] * 5 + [1] * 4
    assert [data.train.images.name(row) for row in (4, 5)] == ["train/c0/4.png", "train/c3/0.png"]
    assert [data.test.images.name(row) for row in (1, 2)] == ["val/c0/1.png", "val/c3/0.png"]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert (data.info.counts["train"], data.info.counts["val"]) == (9, 4)
    with pytest.raises(
        UserError, match=r"would leave out 4 of 5 classes, e.g. c1, .* two at least"
    ):
        open_data(config(root, mode="lowshot", k=[5], skip_classes=True))


def test_train_and_test_that_are_one_are_refused(tmp_path):
    root = make_small_folder(tmp_path, train=[3, 3])
    shutil.copytree(root / "train", root / "val")
    with pytest.raises(UserError, match="train and test are the same images"):
        open_data(config(root))


def test_tables_of_several_labels(tmp_path):
    root = make_small_folder(tmp_path, train=[8], val=[4])
    train = ["1,0,", "1,0,1", "0,1,1", "0,1,0", "1,1,0", "0,0,0", "0,0,1", ",0,1"]
    val = ["1,0,1", "0,0,0", "0,1,", "1,,"]
    for split, rows in {"train": train, "val": val}.items():
        lines = [f"{split}/c0/{number}.png,{row}" for number, row in enumerate(rows)]
        (root / f"{split}.csv").write_text("\n".join(["image,cat,dog,owl", *lines]))
    data = open_data(config(root))
    assert data.multilabel
    assert data.train.labels.tolist()[0] == [1, -1, 0]
    assert targets(data.train.labels, [2], "negative")[:3, 0].tolist() == [-1, 1, 1]
    with pytest.raises(UserError, match="class owl has 4 positive and 3 negative images in train"):
        open_data(config(root, mode="lowshot", k=[2]))
    assert open_data(config(root, mode="lowshot", k=[2], skip_classes=True)).classes == [
        "cat",
        "dog",
    ]
