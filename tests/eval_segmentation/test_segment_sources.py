"""SBD's .mat files, any folder of images and masks, and every problem listed at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.pairs import IGNORE, SegmentationData, read_mask, read_pair, voc_colours
from siambench.errors import UserError


def _open(data: Path, **fields: object) -> SegmentationData:
    return open_data(SegmentConfig(backbone="", data=str(data), **fields))


def _lines(folder: Path, name: str) -> list[str]:
    return (folder / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split()


def _save_mat(path: Path, labels: np.ndarray) -> None:
    """As SBD's benchmark_RELEASE has them: a struct GTcls of three fields."""
    nothing = np.empty((0, 0))
    struct = {"Boundaries": nothing, "Segmentation": labels, "CategoriesPresent": nothing}
    savemat(path, {"GTcls": struct}, do_compression=True)


@pytest.fixture
def voc(scenes: Path, tmp_path: Path) -> Path:
    """A copy of VOC2012 to change."""
    shutil.copytree(scenes / "VOCdevkit" / "VOC2012", tmp_path / "VOCdevkit" / "VOC2012")
    return tmp_path / "VOCdevkit" / "VOC2012"


@pytest.fixture
def sbd(voc: Path, tmp_path: Path) -> Path:
    """The training masks as SBD has them, without the PNGs and their list; some in its val."""
    aug, own, val = (_lines(voc, name) for name in ("train_aug", "train", "val"))
    dataset = tmp_path / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    for name in [*aug, *val]:
        labels = np.asarray(Image.open(voc / "SegmentationClassAug" / f"{name}.png"))
        _save_mat(dataset / "cls" / f"{name}.mat", labels)
    rest = [name for name in aug if name not in own]
    (dataset / "train.txt").write_text("\n".join([*rest[:5], *own[:2], val[0]]) + "\n")
    (dataset / "val.txt").write_text("\n".join([*rest[5:], *val[1:3]]) + "\n")
    return dataset.parent


def test_sbd_as_downloaded_is_the_folder_of_masks(voc: Path, sbd: Path) -> None:
    """The same pairs and labels from .mat files and SBD's lists as from PNGs and the aug list."""
    with_pngs = _open(voc.parent)
    labels = {p.image.stem: read_mask(p.mask, with_pngs.table) for p in with_pngs.train}
    shutil.rmtree(voc / "SegmentationClassAug")
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    for folder in (sbd, sbd / "dataset"):
        data = _open(voc.parent, sbd=str(folder))
        assert {p.image.stem for p in data.train} == {p.image.stem for p in with_pngs.train}
        assert len(data.train) == len(with_pngs.train)
        assert data.info.counts == with_pngs.info.counts
        masks = {p.image.stem: p for p in data.train}
        for pair in with_pngs.train:
            mine = masks[pair.image.stem]
            assert mine.size == pair.size
            ours = read_mask(mine.mask, data.table)
            np.testing.assert_array_equal(ours, labels[pair.image.stem])
        assert sum(p.mask.suffix == ".mat" for p in data.train) > 10
    assert [p.image.stem for p in data.train][: len(_lines(voc, "train"))] == _lines(voc, "train")


def test_a_list_of_ones_own_with_sbds_masks(voc: Path, sbd: Path) -> None:
    shutil.rmtree(voc / "SegmentationClassAug")
    data = _open(voc.parent, sbd=str(sbd))
    assert [p.image.stem for p in data.train] == _lines(voc, "train_aug")


def test_sbd_that_is_not_there_or_damaged(voc: Path, sbd: Path) -> None:
    with pytest.raises(UserError, match=r"SBD's masks: .*/cls does not exist; point --sbd at"):
        _open(voc.parent, sbd=str(voc))
    mats = sorted((sbd / "dataset" / "cls").glob("*.mat"))
    used = next(p for p in mats if p.stem not in {*_lines(voc, "train"), *_lines(voc, "val")})
    used.write_bytes(used.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"mask {used}: cannot be decoded"):
        _open(voc.parent, sbd=str(sbd))
    assert _open(voc.parent, sbd=str(sbd), skip_bad=True).info.counts["skipped"] == 1


def test_colours_are_vocs() -> None:
    colours = voc_colours(21)
    assert colours[:2] == [(0, 0, 0), (128, 0, 0)]
    assert (colours[15], colours[20]) == ((192, 128, 128), (0, 64, 128))  # person, TV


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images with masks of 0 to 3 and 255, nested, of several kinds."""
    root, rng = tmp_path / "own", np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            inside = Path(split) / ("a" if number % 2 else "b")
            for kind in ("images", "masks"):
                (root / kind / inside).mkdir(parents=True, exist_ok=True)
            ending = (".jpg", ".JPG", ".png", ".jpeg")[number % 4]
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / inside / f"{number}{ending}")
            labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (20, 30))
            ending = (".png", ".tif")[number % 2]
            Image.fromarray(labels).save(root / "masks" / inside / f"{number}{ending}")
    (root / "classes.txt").write_text("nothing\nsky\r\ntree\nroad\n\n")
    return root


def test_any_folder(folder: Path) -> None:
    data = _open(folder, dataset="folder")
    assert data.classes == ["nothing", "sky", "tree", "road"]
    assert data.info.counts == {"train": 4, "val": 2, "classes": 4, "skipped": 0}
    for pair in [*data.train, *data.val]:
        assert pair.size == (30, 20)
        assert pair.image.relative_to(folder / "images").with_suffix("") == (
            pair.mask.relative_to(folder / "masks").with_suffix("")
        )
    assert data.info.fingerprint == _open(folder, dataset="folder").info.fingerprint


def test_ignored_values_are_no_classes(folder: Path) -> None:
    data = _open(folder, dataset="folder", ignored_values=[0, 2])
    assert data.classes == ["sky", "road"]
    mask = data.train[0].mask
    values, labels = np.asarray(Image.open(mask)), read_mask(mask, data.table)
    for value, label in {0: IGNORE, 1: 0, 2: IGNORE, 3: 1, 255: IGNORE}.items():
        assert (labels[values == value] == label).all()
    with pytest.raises(UserError, match=r"--ignored_values holds 4, but classes.txt names 0 to 3"):
        _open(folder, dataset="folder", ignored_values=[4])
    with pytest.raises(UserError, match="leaves 1 classes"):
        _open(folder, dataset="folder", ignored_values=[0, 1, 2])


def test_other_names_of_folders(folder: Path) -> None:
    """ADE20K's."""
    (folder / "masks").rename(folder / "annotations")
    for kind in ("images", "annotations"):
        (folder / kind / "train").rename(folder / kind / "training")
        (folder / kind / "val").rename(folder / kind / "validation")
    names = {"mask_folder": "annotations", "train_split": "training", "val_split": "validation"}
    assert len(_open(folder, dataset="folder", **names).train) == 4
    with pytest.raises(UserError, match=r"images/train does not exist; expected DATA/images/SPLIT"):
        _open(folder, dataset="folder")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, r"classes.txt does not exist; write one class name a line"),
        ("", "line 1 is empty"),
        ("sky\n\nroad\n", "line 2 is empty"),
        ("sky\nroad\nsky\n", "names 'sky' twice"),
        ("\n".join(map(str, range(256))), "names 256 classes"),
        ("sky\nroad\n", r"holds the value 2 in \d+ pixels; the labels are 0 to 1 and 255"),
    ],
)
def test_a_wrong_list_of_classes(folder: Path, text: str | None, line: str) -> None:
    path = folder / "classes.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=line):
        _open(folder, dataset="folder")


def test_two_images_of_one_name(folder: Path) -> None:
    image = next((folder / "images" / "train").rglob("*.jpg"))
    shutil.copy(image, image.with_suffix(".png"))
    with pytest.raises(UserError, match="with several endings"):
        _open(folder, dataset="folder")


def test_every_problem_is_listed_once(folder: Path) -> None:
    masks = sorted((folder / "masks" / "train").rglob("*.*"))
    images = sorted((folder / "images" / "train").rglob("*.*"))
    masks[0].unlink()
    Image.new("L", (31, 20)).save(masks[1])
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(masks[2])
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(masks[3])
    images[3].write_bytes(images[3].read_bytes()[:100])
    tested = sorted((folder / "images" / "val").rglob("*.*"))
    shutil.copy(images[0], tested[0].with_name("copy.jpg"))
    shutil.copy(
        masks[1], folder / "masks" / tested[0].parent.relative_to(folder / "images") / "copy.png"
    )
    with pytest.raises(UserError, match=r"^7 problems in .*; and 2 more; correct them$") as error:
        _open(folder, dataset="folder", skip_bad=False)
    for wanted in (
        f"mask {masks[0].with_suffix('.png')}: does not exist (train pair 1 of 4)",
        f"mask {masks[1]}: is 31×20 but image {images[1]} is 30×20; they must be of one size",
        f"mask {masks[2]}: has mode I;16; a mask is an 8-bit picture of class indices",
        f"mask {masks[3]}: holds the value 77 in 600 pixels; the labels are 0 to 3 and 255",
        f"image {images[3]}: cannot be decoded",
        f"image {tested[0].with_name('copy.jpg')}: is the training image {images[0]} too",
    ):
        assert sum(wanted in line for line in error.value.details) == 1, wanted


def test_lists_of_other_systems(voc: Path) -> None:
    """Windows' line ends, blank lines, a name twice."""
    lists = voc / "ImageSets" / "Segmentation" / "train.txt"
    names = _lines(voc, "train")
    lists.write_bytes("\r\n".join([*names, "", names[0], ""]).encode())
    data = _open(voc.parent, dataset="voc12")
    assert [p.image.stem for p in data.train] == names
    lists.write_text("\n")
    with pytest.raises(UserError, match=r"train.txt is empty"):
        _open(voc.parent, dataset="voc12")


def test_masks_exchanged_are_other_data(folder: Path) -> None:
    """Of one size on disk, and the same pixels over all."""
    for mask in sorted((folder / "masks" / "train").rglob("*.*")):
        Image.open(mask).save(mask.with_suffix(".bmp"))
        mask.unlink()
    masks = sorted((folder / "masks" / "train").rglob("*.bmp"))
    before = _open(folder, dataset="folder").info.fingerprint
    contents = [mask.read_bytes() for mask in masks]
    assert len({len(content) for content in contents}) == 1
    for mask, content in zip(masks, contents[1:] + contents[:1], strict=True):
        mask.write_bytes(content)
    assert _open(folder, dataset="folder").info.fingerprint != before


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_pictures_that_exif_turns(folder: Path, ending: str) -> None:
    image = next((folder / "images" / "train").rglob("*.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(image.with_suffix(f".{ending}"), exif=exif)
    image.unlink()
    with pytest.raises(UserError, match=r"is 30×20 but image .* is 20×30"):
        _open(folder, dataset="folder")


def test_what_changes_after_the_check_is_said(folder: Path) -> None:
    data = _open(folder, dataset="folder")
    Image.new("L", (31, 20)).save(data.train[0].mask)
    with pytest.raises(UserError, match="is 30×20 when it is upright, its mask 31×20"):
        read_pair(data.train[0], data.table)
    data.train[0].mask.unlink()
    with pytest.raises(UserError, match=rf"mask {data.train[0].mask} cannot be read"):
        read_pair(data.train[0], data.table)


def test_classes_of_other_editors(folder: Path) -> None:
    (folder / "classes.txt").write_bytes("\ufeffnothing\nsky\ntree\nroad".encode())
    assert _open(folder, dataset="folder").classes[0] == "nothing"
    (folder / "classes.txt").write_bytes("nothing\nsky\ntree\nStraße".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes.txt is not UTF-8"):
        _open(folder, dataset="folder")
