"""Every data set of the table holds the pictures and classes that torchvision's own class gives."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets
from torchvision_files import WRITERS

from siambench.data.classification import open_classification
from siambench.data.torchvision_sets import SETS
from siambench.errors import UserError


@pytest.fixture
def no_digests(monkeypatch):
    """Small files have not the digests of the real ones."""
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: True)
    for name in ("SVHN", "STL10", "Flowers102"):
        monkeypatch.setattr(getattr(datasets, name), "_check_integrity", lambda self: True)
    monkeypatch.setattr(
        datasets.Places365, "_check_integrity", lambda self, file, md5, download: True
    )


def theirs(name, root, parts):
    """(pixels, class name) of every picture of torchvision's."""
    rows = []
    for arguments in parts:
        data = getattr(datasets, name)(root, **arguments)
        names = getattr(data, "classes", None) or getattr(data, "categories", None)
        for number in range(len(data)):
            image, label = data[number]
            known = names[label] if names else str(label)
            known = known if isinstance(known, str) else ", ".join(known)
            rows.append((np.asarray(image.convert("RGB")).tobytes(), known))
    return rows


def ours(found, split):
    return [
        (np.asarray(split.images[n]).tobytes(), found.classes[split.labels[n]])
        for n in range(len(split.images))
    ]


def test_every_set_of_the_table_is_tested():
    assert set(WRITERS) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_pictures_and_classes_are_torchvisions(name, tmp_path, no_digests, capsys):
    WRITERS[name](tmp_path)
    found = open_classification(f"torchvision:{name}:{tmp_path}")
    parts = SETS[name].splits
    if "all" in parts:
        assert (found.train.name, found.test.name) == ("train", "test")
        every = ours(found, found.train) + ours(found, found.test)
        assert sorted(every) == sorted(theirs(name, tmp_path, parts["all"]))
        assert "drawn with a fixed seed" in capsys.readouterr().err
    else:
        for split in (found.train, found.test):
            assert ours(found, split) == theirs(name, tmp_path, parts[split.name])
    assert found.info.name == name
    assert found.info.counts == {
        found.train.name: len(found.train.images),
        found.test.name: len(found.test.images),
        "classes": len(found.classes),
        "skipped": 0,
    }
    again = pickle.loads(pickle.dumps(found))
    assert again.test.images.stamp() == found.test.images.stamp()
    assert again.info == open_classification(f"torchvision:{name}:{tmp_path}").info


def test_grey_arrays_are_named_and_stamped_by_their_pixels(tmp_path, monkeypatch):
    WRITERS["MNIST"](tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    found = open_classification(f"torchvision:MNIST:{tmp_path.name}")  # relative
    assert found.test.images.name(7) == "MNIST test 7"
    assert found.test.images[7].mode == "RGB"
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = open_classification(f"torchvision:MNIST:{tmp_path}")
    assert changed.test.images.stamp() != found.test.images.stamp()
    assert changed.train.images.stamp() == found.train.images.stamp()
    assert changed.info.fingerprint != found.info.fingerprint


def test_arrays_in_both_splits_are_told(tmp_path, capsys):
    WRITERS["MNIST"](tmp_path)
    raw = tmp_path / "MNIST/raw"
    train, test = raw / "train-images-idx3-ubyte", raw / "t10k-images-idx3-ubyte"
    content = bytearray(test.read_bytes())
    content[16 + 3 * 784 : 16 + 4 * 784] = train.read_bytes()[16 + 5 * 784 : 16 + 6 * 784]
    test.write_bytes(content)
    assert not open_classification(f"torchvision:MNIST:{tmp_path}").same
    assert "warning: 1 of 10 images of test" in (said := capsys.readouterr().err)
    assert "MNIST test 3 = MNIST train 5" in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("torchvision:CelebA", "torchvision:CelebA is not known; choose from MNIST, "),
        ("torchvision:", "torchvision: is not known"),
        ("torchvision:CIFAR10:nowhere", "nowhere does not exist; --download true fetches"),
        ("torchvision:CIFAR10:.", r"not to be had from .*\(Dataset not found.*--download true"),
        ("torchvision:USPS:.", r"not to be had from .*--download true"),
    ],
)
def test_a_set_that_is_not_there_is_a_line(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_classification(data)


def test_the_download_is_torchvisions_and_only_on_request(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets.MNIST,
        "download",
        lambda self: (asked.append(self.train), WRITERS["MNIST"](Path(self.root))),
    )
    with pytest.raises(UserError, match="not to be had"):
        open_classification(f"torchvision:MNIST:{tmp_path}")
    assert not asked
    found = open_classification(f"torchvision:MNIST:{tmp_path}/new", download=True)
    assert asked == [True, False]
    assert len(found.train.images) == 20
