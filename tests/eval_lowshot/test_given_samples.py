"""Given samples: FAIR's and VISSL's index files and our own, and what is wrong with them."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small_voc import COLOURS, make_small_folder, make_small_voc

from eval_lowshot.config import SvmConfig
from eval_lowshot.data import open_data
from eval_lowshot.samples import samples_of, write_samples
from siambench.errors import UserError

KEYS = [(k, number) for k in (1, 3) for number in (1, 2)]


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_small_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small_folder(tmp_path_factory.mktemp("folder"), train=[5, 4, 6], val=[1, 1, 1])


def config(root, given, **fields):
    low = {"mode": "lowshot", "k": [1, 3], "samples": 2, "backbone": ""}
    return SvmConfig(data=str(root), samples_dir=str(given), **{**low, **fields})


def make_matrices(voc, given, stem="train_targets", seed=0):
    """As the scripts make them: per class k positives and 2k negatives, all else -1. Returns them."""
    rng = np.random.default_rng(seed)
    labels = np.load(voc / "labels-trainval.npy")
    given.mkdir(exist_ok=True)
    made = {}
    for k, number in KEYS:
        made[k, number] = np.full(labels.shape, -1, np.int32)
        for truth, column in zip(labels.T, made[k, number].T, strict=True):
            column[rng.choice(np.flatnonzero(truth == 1), k, replace=False)] = 1
            column[rng.choice(np.flatnonzero(truth == -1), 2 * k, replace=False)] = 0
        np.save(given / f"{stem}_sample{number}_k{k}.npy", made[k, number])
    return made


def assert_are(samples, matrices, columns=(0, 1, 2)):
    for (k, number), sample in zip(KEYS, samples, strict=True):
        assert (sample.k, sample.number) == (k, number - 1)
        rows, y = sample.of(range(len(columns)))
        for column, images, signs in zip(columns, rows, y[:, :, 0], strict=True):
            wanted = matrices[k, number][:, column]
            assert images[signs == 1].tolist() == np.flatnonzero(wanted == 1).tolist()
            assert images[signs == -1].tolist() == np.flatnonzero(wanted == 0).tolist()


@pytest.mark.parametrize(
    "stem", ["train_targets", "trainval_res5_2_branch2c_bn_targets", "res5avg"]
)
def test_matrices(voc, tmp_path, stem):
    made = make_matrices(voc, tmp_path, stem)
    np.save(tmp_path / "test_ap_sample1_k1.npy", np.zeros(3))  # what else the scripts leave there
    asked = config(voc, tmp_path)
    data = open_data(asked)
    assert_are(samples_of(data, asked, 0), made)
    few = config(voc, tmp_path, k=[3], samples=1)
    (sample,) = samples_of(open_data(few), few, 5)
    assert (sample.images == data.given[2].images).all()


def test_rows_of_a_matrix_are_the_images_sorted_by_name(voc, tmp_path):
    root = shutil.copytree(voc, tmp_path / "reversed")
    path = root / "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))
    made = make_matrices(voc, tmp_path / "given")
    samples = open_data(config(root, tmp_path / "given")).given
    assert_are(
        [replace(s, images=47 - s.images[:, ::-1], labels=s.labels[:, ::-1]) for s in samples], made
    )


def test_a_class_that_is_left_out_is_left_out_of_the_matrix(voc, tmp_path):
    root = shutil.copytree(voc, tmp_path / "copy")
    path = root / "VOCdevkit/VOC2007/ImageSets/Main/green_test.txt"
    path.write_text("\n".join(f"{line.split()[0]} -1" for line in path.read_text().splitlines()))
    made = make_matrices(voc, tmp_path / "given")
    data = open_data(config(root, tmp_path / "given", skip_classes=True))
    assert data.classes == ["blue", "red"]
    assert_are(data.given, made, [0, 2])


def test_the_fingerprint_has_the_content_and_not_the_place(voc, tmp_path):
    drawn = open_data(config(voc, "", negatives_per_positive=2)).info.fingerprint
    prints = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make_matrices(voc, tmp_path / name, stem=name, seed=seed)
        prints.append(open_data(config(voc, tmp_path / name)).info.fingerprint)
    assert prints[0] == prints[1]
    assert len({drawn, *prints}) == 3


def change(given, action):
    path = given / "train_targets_sample2_k3.npy"
    matrix = np.load(path)
    if action == "transposed":
        np.save(path, matrix.T)
    elif action == "floats":
        np.save(path, np.where(matrix == 1, 0.5, matrix))
    elif action == "text":
        np.save(path, matrix.astype(str))
    elif action == "fewer":
        matrix[np.flatnonzero(matrix[:, 1] == 1)[0], 1] = -1
        np.save(path, matrix)
    elif action == "no negative":
        matrix[matrix[:, 2] == 0, 2] = -1
        np.save(path, matrix)
    elif action == "absent":
        path.unlink()
    elif action == "two layers":
        shutil.copy(path, given / "res5_sample2_k3.npy")
    elif action == "objects":
        np.save(path, matrix.astype(object), allow_pickle=True)
    elif action == "pickle":
        path.write_bytes(pickle.dumps(matrix))
    elif action == "cut off":
        path.write_bytes(path.read_bytes()[:200])
    elif action == "broken archive":
        path.write_bytes(b"PK\x03\x04 and nothing")
    elif action == "archive":
        np.savez(given / "x.npz", matrix)
        (given / "x.npz").rename(path)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            "transposed",
            r"k3.npy is of shape \(3, 48\); one row for each of 48 images of trainval and",
        ),
        ("floats", r"k3.npy has values other than 1 \(positive\), 0 "),
        ("text", r"k3.npy has values other than 1 "),
        ("fewer", r"sample2_k3.npy: class green has 2 positive images, not 3"),
        (
            "no negative",
            r"sample2_k3.npy: class red has 0 negative images; training and its cross-",
        ),
        (
            "absent",
            r"has no \*_sample2_k3.npy; it has k = 1, 3 and at most 2 samples: ask .*--k and --samples",
        ),
        ("two layers", r"has both res5_sample2_k3.npy and train_targets_sample2_k3.npy"),
        ("objects", r"k3.npy holds Python objects, which are not loaded; .*\.astype\(str\)"),
        ("pickle", r"k3.npy is not a NumPy array \("),
        ("cut off", r"k3.npy is not a NumPy array \("),
        ("archive", r"k3.npy is not a NumPy array but an archive"),
        ("broken archive", r"k3.npy is not a NumPy array \("),
    ],
)
def test_matrices_that_are_wrong(voc, tmp_path, action, message):
    make_matrices(voc, tmp_path)
    change(tmp_path, action)
    with pytest.raises(UserError, match=message):
        open_data(config(voc, tmp_path))


def test_another_order_of_rows_is_counted_and_shown(voc, tmp_path):
    made = make_matrices(voc, tmp_path)[3, 2]
    moved = np.roll(made, 1, axis=0)
    labels = np.load(voc / "labels-trainval.npy")
    used = moved != -1
    wrong = used & (np.where(moved == 1, 1, -1) != labels)
    row, column = np.argwhere(wrong)[0]
    words = {1: "positive", 0: "left out", -1: "negative"}
    there = "positive" if moved[row, column] == 1 else "negative"
    np.save(tmp_path / "train_targets_sample2_k3.npy", moved)
    with pytest.raises(UserError) as caught:
        open_data(config(voc, tmp_path))
    said = (
        f"sample2_k3.npy: {wrong.sum()} labels are not the data's, e.g. row {row}, which should be "
        f"JPEGImages/trainval{row:04d}.jpg, is {there} for {sorted(COLOURS)[column]} there and "
        f"{words[labels[row, column]]} in the data; rows must be the images of trainval sorted by name"
    )
    assert said in str(caught.value)


def test_difficult_images_are_negatives_only_where_they_are_asked_to_be(voc, tmp_path):
    made = make_matrices(voc, tmp_path)[3, 2]
    row, column = np.argwhere(np.load(voc / "labels-trainval.npy") == 0)[0]
    made[row, column] = 0
    np.save(tmp_path / "train_targets_sample2_k3.npy", made)
    with pytest.raises(UserError, match=r"negative for .* there and left out in the data"):
        open_data(config(voc, tmp_path))
    open_data(config(voc, tmp_path, difficult_train="negative"))


def test_no_folder_and_no_files(voc, folder, tmp_path):
    with pytest.raises(UserError, match=r"--samples_dir: .*nowhere does not exist"):
        open_data(config(voc, tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no \*_sample1_k1.npy, nor that of another k"):
        open_data(config(voc, tmp_path))
    make_matrices(voc, tmp_path)
    with pytest.raises(UserError, match=r"has no train_images_sample1_k1.npy, nor that"):
        open_data(config(folder, tmp_path))


def make_lists(given, prefix="/elsewhere/places/", names=lambda path: path, seed=0):
    """As the scripts make them: k paths of each class, in the order drawn. Returns the sorted paths."""
    rng = np.random.default_rng(seed)
    given.mkdir(exist_ok=True)
    made = {}
    for k, number in KEYS:
        paths, labels = [], []
        for label, count in enumerate([5, 4, 6]):
            drawn = rng.choice(count, k, replace=False)
            paths += [f"train/c{label}/{n}.png" for n in drawn]
            labels += [label] * k
        made[k, number] = sorted(paths)
        np.save(given / f"train_images_sample{number}_k{k}.npy", [names(prefix + p) for p in paths])
        np.save(given / f"train_labels_sample{number}_k{k}.npy", labels)
    return made


@pytest.mark.parametrize(
    ("prefix", "names"),
    [("/elsewhere/places/", str), ("", str), ("./", str), ("/old/", str.encode)],
)
def test_lists_of_paths(folder, tmp_path, prefix, names):
    made = make_lists(tmp_path, prefix, names)
    asked = config(folder, tmp_path)
    data = open_data(asked)
    for key, sample in zip(KEYS, samples_of(data, asked, 0), strict=True):
        rows, y = sample.of([0, 1, 2])
        assert [data.train.images.name(row) for row in rows[0]] == made[key]
        np.testing.assert_array_equal(y[0].argmax(1), np.repeat([0, 1, 2], key[0]))
        assert sample.images.dtype == sample.labels.dtype == np.int64


def test_paths_that_are_the_end_of_the_datas(tmp_path):
    root = make_small_folder(tmp_path, train=[2, 2], val=[1, 1])
    given = tmp_path / "given"
    given.mkdir()
    np.save(given / "train_images_sample1_k1.npy", ["c0/1.png", "c1/0.png"])
    np.save(given / "train_labels_sample1_k1.npy", [0, 1])
    one = {"k": [1], "samples": 1}
    (sample,) = open_data(config(root, given, **one)).given
    assert sample.images.tolist() == [[1, 2]]
    np.save(given / "train_images_sample1_k1.npy", ["1.png", "c1/0.png"])
    with pytest.raises(UserError, match=r"1.png could be several images of train \(1 of 2 paths\)"):
        open_data(config(root, given, **one))


def test_lists_without_the_classes_that_are_left_out(tmp_path):
    root = make_small_folder(tmp_path, train=[5, 4, 6], val=[1, 0, 1])
    made = make_lists(tmp_path / "given")
    data = open_data(config(root, tmp_path / "given", skip_classes=True))
    assert data.classes == ["c0", "c2"]
    for key, sample in zip(KEYS, data.given, strict=True):
        wanted = [path for path in made[key] if "c1" not in path]
        assert [data.train.images.name(row) for row in sample.images[0]] == wanted
        np.testing.assert_array_equal(data.train.labels[sample.images[0]], sample.labels[0])


def test_a_run_that_left_out_classes_can_be_repeated_from_its_file(tmp_path):
    root = make_small_folder(tmp_path, train=[5, 2, 6], val=[1, 1, 1])
    asked = config(root, "", skip_classes=True)
    data = open_data(asked)
    drawn = samples_of(data, asked, 7)
    write_samples(drawn, data, tmp_path / "samples.json", 7)
    again = open_data(replace(asked, samples_dir=str(tmp_path)))
    assert again.classes == data.classes == ["c0", "c2"]
    for one, two in zip(drawn, again.given, strict=True):
        np.testing.assert_array_equal(one.rows, two.rows)
    with pytest.raises(
        UserError, match="class c1 has 2 images in train; k = 3 needs 3: keep --k to"
    ):
        open_data(config(root, tmp_path))


@pytest.mark.parametrize(
    ("which", "at", "value", "message"),
    [
        ("images", 1, "/x/train/c0/77.png", r"/x/train/c0/77.png is not an image of train \(1 of 9"),
        ("labels", 1, 2, r"k3.npy: 1 labels are not the data's, e.g. .*/train/c0/\d.png has 2 there and 0"),
        ("images", 1, None, r"class c0 has an image twice"),
        ("both", 1, "/x/train/c1/0.png", r"class c0 has 2 positive images, not 3"),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(folder, tmp_path, which, at, value, message):
    make_lists(tmp_path)
    images = np.load(tmp_path / "train_images_sample2_k3.npy").tolist()
    labels = np.load(tmp_path / "train_labels_sample2_k3.npy").tolist()
    if which == "both":
        images[at], labels[at] = value, 1
    elif which == "labels":
        labels[at] = value
    else:
        images[at] = value or images[0]
    np.save(tmp_path / "train_images_sample2_k3.npy", images)
    np.save(tmp_path / "train_labels_sample2_k3.npy", labels)
    with pytest.raises(UserError, match=message):
        open_data(config(folder, tmp_path))


def test_lists_of_different_length(folder, tmp_path):
    make_lists(tmp_path)
    np.save(tmp_path / "train_labels_sample2_k3.npy", [0, 1])
    with pytest.raises(
        UserError, match=r"must be as many paths as class numbers; they are 9 of .* 2 "
    ):
        open_data(config(folder, tmp_path))


@pytest.mark.parametrize("kind", ["several", "single"])
def test_a_runs_own_file(kind, voc, folder, tmp_path):
    asked = config(voc if kind == "several" else folder, "", negatives_per_positive=2)
    data = open_data(asked)
    drawn = samples_of(data, asked, 7)
    write_samples(drawn, data, tmp_path / "samples.json", 7)
    asked = replace(asked, samples_dir=str(tmp_path))
    data = open_data(asked)
    for one, two in zip(drawn, samples_of(data, asked, 0), strict=True):
        assert (one.k, one.number) == (two.k, two.number)
        for column in range(3):
            (rows, y), (wanted, signs) = two.of([column]), one.of([column])
            # in the same order, which the folds go by
            np.testing.assert_array_equal(rows[0], wanted[0])
            np.testing.assert_array_equal(y[0], signs[0])
    with pytest.raises(
        UserError, match="has no sample 2 of k 1; it has k = 1, 3 and at most 2 samples"
    ):
        open_data(replace(asked, samples=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["samples"][0]["images"].append(999), r"is not a samples.json of trainval \(KeyErr"),
        (lambda c: c.pop("trainval"), r"is not a samples.json of trainval \(KeyError: 'trainval'\)"),
        (lambda c: c["trainval"].update({next(iter(c["trainval"])): "no.jpg"}), r"no.jpg is not an image"),
        (lambda c: c["samples"].pop(1), r"k 1, sample 0: class green has 0 positive images, not 1"),
        (lambda c: c["samples"][1]["images"].pop(), r"k 1, sample 0: class green has "),
        (lambda c: c["samples"][0].update(k=float("inf")), r"is not a samples.json of trainval \(Overflow"),
    ],
)  # fmt: skip
def test_a_runs_own_file_that_is_wrong(voc, tmp_path, change, message):
    asked = config(voc, "", negatives_per_positive=1)
    data = open_data(asked)
    write_samples(samples_of(data, asked, 7), data, tmp_path / "samples.json", 7)
    content = json.loads((tmp_path / "samples.json").read_text())
    change(content)
    (tmp_path / "samples.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_data(config(voc, tmp_path))
