"""Reading VOC 2007, and one clear line for everything that is wrong with it."""

import shutil

import numpy as np
import pytest
from small_voc import COLOURS, make_small_voc

from eval_lowshot import VERBS
from eval_lowshot.config import SvmConfig, cost_values
from eval_lowshot.voc import open_data, training_labels
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
    assert [p.stem for p in data.test.paths][:2] == ["test0000", "test0001"]
    assert data.info.counts == {"trainval": 48, "test": 30, "classes": 3, "skipped": 0}
    assert open_data(config(voc / "VOCdevkit")).info == data.info


def test_the_fingerprint_sees_a_changed_label(voc, own_voc):
    labels = np.load(own_voc / "labels-test.npy")[:, 0].copy()
    labels[0] = -labels[0] or 1
    set_labels(own_voc, "blue_test.txt", labels)
    assert open_data(config(own_voc)).info.fingerprint != open_data(config(voc)).info.fingerprint


def test_difficult_images_in_training():
    labels = np.array([1, 0, -1], dtype=np.int8)
    assert training_labels(labels, "negative").tolist() == [1, -1, -1]
    assert training_labels(labels, "drop").tolist() == [1, 0, -1]
    assert config("x").difficult_train == "negative"
    assert config("x", mode="lowshot").difficult_train == "drop"
    assert config("x", mode="lowshot", difficult_train="negative").difficult_train == "negative"


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
    assert name not in {p.name for p in data.train.paths}
    np.testing.assert_array_equal(
        data.train.labels, np.delete(np.load(own_voc / "labels-trainval.npy"), 3, axis=0)
    )


def test_wrong_path(tmp_path):
    with pytest.raises(UserError, match="VOC2007 does not exist"):
        open_data(config(tmp_path))


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
        "class green has 20 positive and 26 negative images in trainval; k = 8 needs 8 and 32 (4 per "
        "positive): keep --k to at most 6, or lower --negatives_per_positive"
    )
    open_data(config(own_voc, **low, k=[6]))
    with pytest.raises(UserError, match=r"class green .* k = 7 needs 7 and 28"):
        open_data(config(own_voc, **low, k=[7]))
    open_data(config(own_voc, **low, k=[7], difficult_train="negative"))
    with pytest.raises(UserError, match=r"\(40 per positive\): use more images, or lower"):
        open_data(config(own_voc, mode="lowshot", k=[1], negatives_per_positive=40))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"costs": []}, "--costs"),
        ({"costs": [1.0, 0.0]}, "--costs"),
        ({"costs": [1.0, 1.0]}, "--costs"),
        ({"k": [0, 1]}, "--k"),
        ({"k": []}, "--k"),
        ({"samples": 0}, "--samples"),
        ({"negatives_per_positive": 0}, "--negatives_per_positive"),
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
        for name in ("fair", "fair-default", "vissl", "mmselfsup", "virtex")
    }
    assert lengths == {"fair": 26, "fair-default": 18, "vissl": 11, "mmselfsup": 19, "virtex": 4}
    fair = cost_values(config("x", costs="fair"))
    assert len(set(fair)) == 26
    assert (min(fair), max(fair)) == (1e-7, 100.0)
    assert 0.5**4 in fair
    assert 0.5**19 in fair
    assert cost_values(config("x", costs=[3.0, 1.0])) == [3.0, 1.0]


def test_presets():
    verb = VERBS["svm"]
    assert set(verb.preset_files()) == {"voc07-svm", "voc07-lowshot"}
    headline = {k: v for k, v in verb.preset("voc07-svm").items() if k != "preset"}
    for name, value in headline.items():
        assert getattr(config("x"), name) == value
    low = verb.preset("voc07-lowshot")
    assert (low["mode"], low["samples"], low["negatives_per_positive"]) == ("lowshot", 5, 19)
    assert low["k"] == [1, 2, 4, 8, 16, 32, 64, 96]
