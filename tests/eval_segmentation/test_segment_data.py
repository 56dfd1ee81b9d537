"""VOC 2012 (aug) and Cityscapes: what is listed, and every problem of the files said in one line."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval_segmentation.cityscapes import CLASSES as CITYSCAPES
from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.pairs import IGNORE, read_mask
from siambench.errors import UserError


@pytest.fixture
def voc(scenes: Path, tmp_path: Path) -> Path:
    """A copy of VOCdevkit/VOC2012 to damage."""
    shutil.copytree(scenes / "VOCdevkit" / "VOC2012", tmp_path / "VOCdevkit" / "VOC2012")
    return tmp_path / "VOCdevkit" / "VOC2012"


def _open(data: Path, **fields: object) -> object:
    return open_data(SegmentConfig(backbone="", data=str(data), **fields))


def _lines(folder: Path, name: str) -> list[str]:
    return (folder / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split()


def test_voc_aug_takes_vocs_own_masks_and_sbds_for_the_rest(scenes: Path) -> None:
    folder = scenes / "VOCdevkit" / "VOC2012"
    data = _open(scenes / "VOCdevkit")
    own, aug, val = (_lines(folder, name) for name in ("train", "train_aug", "val"))
    assert [p.image.stem for p in data.train] == aug
    assert [p.image.stem for p in data.val] == val
    assert len(own) < len(aug)
    for pair in data.train:
        kind = "SegmentationClass" if pair.image.stem in own else "SegmentationClassAug"
        assert pair.mask == folder / kind / f"{pair.image.stem}.png"
        assert pair.size == Image.open(pair.image).size
    assert data.classes[:3] == ["background", "eight", "five"]
    assert data.info.name == "digit-scenes"
    assert data.info.counts == {"train": len(aug), "val": len(val), "classes": 11, "skipped": 0}


def test_voc_without_sbd(scenes: Path, voc: Path) -> None:
    lists = voc / "ImageSets" / "Segmentation"
    with_aug = _open(voc.parent)
    (lists / "train_aug.txt").unlink()
    with pytest.raises(UserError, match=r"no train_aug.txt .* --dataset voc12"):
        _open(voc.parent)
    shutil.rmtree(voc / "SegmentationClassAug")
    plain = _open(voc.parent, dataset="voc12")
    assert [p.image.stem for p in plain.train] == _lines(voc, "train")
    assert plain.info.fingerprint != with_aug.info.fingerprint


@pytest.mark.parametrize("spelling", ["trainaug", "aug", "paths"])
def test_the_aug_list_under_its_other_names(voc: Path, spelling: str) -> None:
    lists = voc / "ImageSets" / "Segmentation"
    own, aug = _lines(voc, "train"), _lines(voc, "train_aug")
    wanted = aug
    if spelling == "aug":
        lines, wanted = [x for x in aug if x not in own], [*own, *(x for x in aug if x not in own)]
        name = "aug.txt"
    elif spelling == "paths":  # DeepLab's
        lines = [f"/JPEGImages/{x}.jpg /SegmentationClassAug/{x}.png" for x in aug]
        name = "train_aug.txt"
    else:
        lines, name = aug, "trainaug.txt"
    (lists / "train_aug.txt").unlink()
    (lists / name).write_text("\n".join(lines) + "\n")
    assert [p.image.stem for p in _open(voc.parent).train] == wanted


def test_a_palette_mask_is_read_as_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 3], [255, 1]], np.uint8))
    image.putpalette([c for i in range(256) for c in (255 - i, i, 7)])
    image.save(tmp_path / "mask.png")
    table = np.full(256, IGNORE, np.uint8)
    table[:4] = [0, 1, 2, 9]
    assert read_mask(tmp_path / "mask.png", table).tolist() == [[0, 9], [255, 1]]


def test_cityscapes_label_ids_become_train_ids(scenes: Path) -> None:
    data = _open(scenes / "cityscapes", dataset="cityscapes")
    assert len(data.classes) == 19
    assert data.table[[7, 8, 11, 33]].tolist() == [0, 1, 2, 18]
    assert data.table[[0, 1, 9, 10, 14, 29, 30, 34, 255]].tolist() == [IGNORE] * 9
    assert sorted(data.table[[id_ for id_, _ in CITYSCAPES.values()]].tolist()) == list(range(19))
    labels = read_mask(data.train[0].mask, data.table)
    raw = np.asarray(Image.open(data.train[0].mask))
    assert np.array_equal(labels == 0, raw == CITYSCAPES["road"][0])
    assert data.info.counts["train"] == len(
        list((scenes / "cityscapes").glob("gtFine/train/*/*Ids.png"))
    )


def _first_mask(voc: Path) -> Path:
    return voc / "SegmentationClass" / f"{_lines(voc, 'train')[0]}.png"


def test_missing_mask(voc: Path) -> None:
    mask = _first_mask(voc)
    mask.unlink()
    with pytest.raises(UserError, match=rf"mask {mask}: does not exist \(train pair 1 of"):
        _open(voc.parent)


def test_mask_of_another_size(voc: Path) -> None:
    mask = _first_mask(voc)
    image = Image.open(mask)
    image.crop((0, 0, image.width - 1, image.height)).save(mask)
    with pytest.raises(
        UserError, match=rf"mask {mask}: is {image.width - 1}×{image.height} but image"
    ):
        _open(voc.parent)


def test_size_of_a_picture_that_exif_turns(voc: Path) -> None:
    name = _lines(voc, "train")[0]
    path = voc / "JPEGImages" / f"{name}.jpg"
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert _open(voc.parent).train[0].size == image.size


def test_unknown_label(voc: Path) -> None:
    mask = _first_mask(voc)
    pixels = np.array(Image.open(mask))
    pixels[0, :3] = 42
    Image.fromarray(pixels).save(mask)
    with pytest.raises(
        UserError, match=rf"mask {mask}: holds the value 42 in 3 pixels.* 0 to 10 and 255"
    ):
        _open(voc.parent, skip_bad=True)


def test_mask_of_colours(voc: Path) -> None:
    mask = _first_mask(voc)
    Image.open(mask).convert("RGB").save(mask)
    with pytest.raises(UserError, match=rf"mask {mask}: has mode RGB"):
        _open(voc.parent)


@pytest.mark.parametrize("what", ["image", "mask"])
def test_truncated_file_is_refused_or_skipped(voc: Path, what: str) -> None:
    path = (
        _first_mask(voc)
        if what == "mask"
        else voc / "JPEGImages" / f"{_lines(voc, 'train')[0]}.jpg"
    )
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(UserError, match=rf"{path}: cannot be decoded.*--skip_bad"):
        _open(voc.parent)
    data = _open(voc.parent, skip_bad=True)
    assert data.info.counts["skipped"] == 1
    assert path not in {p.image for p in data.train} | {p.mask for p in data.train}


def test_nothing_labelled(voc: Path) -> None:
    for name in _lines(voc, "val"):
        mask = voc / "SegmentationClass" / f"{name}.png"
        Image.new("L", Image.open(mask).size, IGNORE).save(mask)
    with pytest.raises(UserError, match="no pixel of the val masks"):
        _open(voc.parent)


def test_test_images_among_the_training_images(voc: Path) -> None:
    lists = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    leaked = _lines(voc, "val")[0]
    lists.write_text(lists.read_text() + leaked + "\n")
    with pytest.raises(UserError, match=f"holds 1 images of val.txt, {leaked} among them"):
        _open(voc.parent)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="VOC2012 does not exist"):
        _open(tmp_path)
    with pytest.raises(UserError, match="leftImg8bit/train does not exist"):
        _open(tmp_path, dataset="cityscapes")
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / kind / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="has no CITY"):
        _open(tmp_path, dataset="cityscapes")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", 0),
        ("iterations", 0),
        ("batch_size", 1),
        ("ratio_min", 3.0),
        ("lr", 0.0),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("ratio_max", float("inf")),
        ("test_scales", [1.0, float("inf")]),
    ],
)
def test_senseless_numbers(scenes: Path, field: str, value: float) -> None:
    with pytest.raises(UserError, match=re.escape(f"--{field} is {value}; ") + "(it|they) must be"):
        _open(scenes / "VOCdevkit", **{field: value})


def test_a_presets_name_on_another_data_set(scenes: Path) -> None:
    with pytest.raises(UserError, match="preset voc12aug-fcn-20k is not for --dataset voc12"):
        _open(scenes / "VOCdevkit", preset="voc12aug-fcn-20k", dataset="voc12")
