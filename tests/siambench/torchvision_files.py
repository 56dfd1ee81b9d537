"""torchvision's data sets at their smallest, in the files that torchvision reads: ``WRITERS[NAME](root)``."""

import bz2
import json
import pickle

import numpy as np
from PIL import Image
from scipy.io import savemat

rng = np.random.default_rng(0)


def pixels(*shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(6, 8, 3)).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def class_folders(folder, names, suffix=".jpg", count=2):
    for name in names:
        for number in range(1, count + 1):
            picture(folder / name / f"image_{number:04d}{suffix}")


def idx(path, array):
    """The format of MNIST's files: two zeros, 8 for bytes, dimensions, sizes, values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def mnist(folder, classes=10, prefix=("train", "t10k")):
    for number, name in enumerate(prefix):
        labels = np.arange(classes * (2 - number), dtype=np.uint8) % classes
        idx(folder / f"{name}-images-idx3-ubyte", pixels(len(labels), 28, 28))
        idx(folder / f"{name}-labels-idx1-ubyte", labels)


def cifar(folder, batches, key, names, meta):
    folder.mkdir()
    for batch in batches:
        content = {"data": pixels(len(names), 3072), key: list(range(len(names)))[::-1]}
        (folder / batch).write_bytes(pickle.dumps(content))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: names}))


def cifar10(root):
    names = [f"kind {n}" for n in range(10)]
    batches = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    cifar(root / "cifar-10-batches-py", batches, "labels", names, ("batches.meta", "label_names"))


def cifar100(root):
    names, meta = ["ant", "bee"], ("meta", "fine_label_names")
    cifar(root / "cifar-100-python", ["train", "test"], "fine_labels", names, meta)


def svhn(root):
    for split in ("train", "test"):
        y = np.array([[10], [1], [2]], np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, 3), "y": y})


def stl10(root):
    folder = root / "stl10_binary"
    text(folder / "class_names.txt", "bird\ncat\n")
    text(folder / "fold_indices.txt", "")
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(pixels(2, 3, 96, 96).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([2, 1]))


def usps(root):
    for name in ("usps.bz2", "usps.t.bz2"):
        rows = [
            " ".join(f"{i}:{v:.3f}" for i, v in enumerate(rng.uniform(-1, 1, 256))) for _ in "12"
        ]
        content = "".join(f"{label} {row}\n" for label, row in zip((2, 1), rows, strict=True))
        (root / name).write_bytes(bz2.compress(content.encode()))


def food101(root):
    class_folders(root / "food-101" / "images", ["pie", "soup"])
    for split, number in (("train", 1), ("test", 2)):
        content = {name: [f"{name}/image_{number:04d}"] for name in ("soup", "pie")}
        text(root / "food-101" / "meta" / f"{split}.json", json.dumps(content))


def dtd(root):
    folder = root / "dtd" / "dtd"
    class_folders(folder / "images", ["dotted", "woven"], count=3)
    for number, split in enumerate(("train", "val", "test"), start=1):
        lines = [f"{name}/image_{number:04d}.jpg\n" for name in ("woven", "dotted")]
        text(folder / "labels" / f"{split}1.txt", "".join(lines))


def flowers(root):
    folder = root / "flowers-102"
    for number in range(1, 307):
        picture(folder / "jpg" / f"image_{number:05d}.jpg")
    ids = np.arange(1, 307).reshape(3, 102)
    savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), ids, strict=True)))
    savemat(
        folder / "imagelabels.mat",
        {"labels": rng.permuted(np.tile(np.arange(1, 103), (3, 1)), axis=1).ravel()},
    )


def aircraft(root):
    folder = root / "fgvc-aircraft-2013b" / "data"
    text(folder / "variants.txt", "707 320\nA 380\n")
    for split in ("trainval", "test"):
        lines = [f"{split}{n} {name}\n" for n, name in enumerate(("A 380", "707 320"))]
        text(folder / f"images_variant_{split}.txt", "".join(lines))
        for n in range(2):
            picture(folder / "images" / f"{split}{n}.jpg")


def pets(root):
    folder = root / "oxford-iiit-pet"
    for number, split in enumerate(("trainval", "test")):
        lines = [
            f"{name}_{number} {label} 1 1\n" for name, label in (("pug_dog", 2), ("Sphynx", 1))
        ]
        text(folder / "annotations" / f"{split}.txt", "".join(lines))
        for line in lines:
            picture(folder / "images" / f"{line.split()[0]}.jpg")


def cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["Fiat", "VW"], object)})
    kind = [("fname", object), ("class", np.uint8)]
    for split, path in (
        ("train", "devkit/cars_train_annos"),
        ("test", "cars_test_annos_withlabels"),
    ):
        rows = np.array([(f"{split}1.jpg", 2), (f"{split}2.jpg", 1)], kind)
        savemat(folder / f"{path}.mat", {"annotations": rows})
        for row in rows:
            picture(folder / f"cars_{split}" / row["fname"])


def country(root):
    for split in ("train", "valid", "test"):
        class_folders(root / "country211" / split, ["AT", "TH"])


def gtsrb(root):
    folder = root / "gtsrb"
    class_folders(folder / "GTSRB" / "Training", ["00000", "00001"], ".ppm")
    class_folders(folder / "GTSRB" / "Final_Test", ["Images"], ".ppm")
    text(folder / "GT-final_test.csv", "Filename;ClassId\nimage_0002.ppm;0\nimage_0001.ppm;1\n")


def sst2(root):
    for split in ("train", "valid", "test"):
        class_folders(root / "rendered-sst2" / split, ["negative", "positive"], ".png")


def imagenette(root):
    for split in ("train", "val"):
        class_folders(root / "imagenette2" / split, ["n01440764", "n02102040"], ".jpeg")


def places365(root):
    text(root / "categories_places365.txt", "/a/abbey 0\n/b/bar 1\n")
    for name, split, folder in (
        ("train_standard", "train", "data_256_standard"),
        ("val", "val", "val_256"),
    ):
        lines = [f"/{split}{n}.jpg {1 - n}\n" for n in range(2)]
        text(root / f"places365_{name}.txt", "".join(lines))
        for n in range(2):
            picture(root / folder / f"{split}{n}.jpg")


def clevr(root):
    folder = root / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val"):
        class_folders(folder / "images", [split], ".png")
        scenes = [
            {"image_filename": f"image_{n:04d}.png", "objects": [{}] * (9 - 3 * n)} for n in (1, 2)
        ]
        text(folder / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))


def caltech256(root):
    folder = root / "caltech256" / "256_ObjectCategories"
    for label, name in enumerate(("001.ak47", "002.flag"), start=1):
        for number in range(1, 4):
            picture(folder / name / f"{label:03d}_{number:04d}.jpg")


def sun397(root):
    folder = root / "SUN397"
    text(folder / "ClassName.txt", "/a/abbey\n/b/bar/indoor\n")
    for place in ("a/abbey", "b/bar/indoor"):
        for number in range(5):
            picture(folder / place / f"sun_{number}.jpg")


def caltech101(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    class_folders(folder, ["BACKGROUND_Google", "ant", "crab"], count=7)


WRITERS = {
    "MNIST": lambda root: mnist(root / "MNIST" / "raw"),
    "FashionMNIST": lambda root: mnist(root / "FashionMNIST" / "raw"),
    "KMNIST": lambda root: mnist(root / "KMNIST" / "raw"),
    "EMNIST": lambda root: mnist(
        root / "EMNIST" / "raw", 47, ("emnist-balanced-train", "emnist-balanced-test")
    ),
    "USPS": usps,
    "CIFAR10": cifar10,
    "CIFAR100": cifar100,
    "SVHN": svhn,
    "STL10": stl10,
    "Food101": food101,
    "DTD": dtd,
    "Flowers102": flowers,
    "FGVCAircraft": aircraft,
    "OxfordIIITPet": pets,
    "StanfordCars": cars,
    "Country211": country,
    "GTSRB": gtsrb,
    "RenderedSST2": sst2,
    "Imagenette": imagenette,
    "Places365": places365,
    "CLEVRClassification": clevr,
    "EuroSAT": lambda root: class_folders(root / "eurosat" / "2750", ["Crop", "River"], count=5),
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "SUN397": sun397,
}
