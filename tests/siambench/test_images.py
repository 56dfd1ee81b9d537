"""Reading images: what cannot be read is named before work starts, or left out and counted."""

import io

import numpy as np
import pytest
from PIL import Image

from siambench.data.images import (
    check_images,
    dataset_name,
    decode,
    decode_array,
    describe,
    read_image_folder,
)
from siambench.errors import UserError
from siambench.files import atomic_path, leftovers, temporary_path, write_text


@pytest.fixture
def folder(tmp_path):
    """train/a and train/b with three JPEGs each."""
    rng = np.random.default_rng(0)
    for label in "ab":
        for n in range(3):
            path = tmp_path / "train" / label / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(path)
    return tmp_path


def _png(damaged):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    if damaged:
        place = content.index(b"IDAT") + 10
        content[place : place + 20] = bytes(20)
    return bytes(content)


def test_listing_is_sorted_and_relative(folder):
    images = read_image_folder(folder, "train")
    assert images.paths == [f"train/{c}/{n}.jpg" for c in "ab" for n in range(3)]
    assert images.labels == [0, 0, 0, 1, 1, 1]
    info = describe(folder, {"train": images})
    assert info.counts == {"train": 6, "classes": 2, "skipped": 0}
    assert info.name == folder.name


def test_the_fingerprint_is_of_the_content_not_the_place(folder, tmp_path_factory):
    import shutil

    before = read_image_folder(folder, "train").fingerprint()
    moved = shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "copy")
    assert read_image_folder(moved, "train").fingerprint() == before
    (moved / "train/a/0.jpg").rename(moved / "train/b/9.jpg")
    assert read_image_folder(moved, "train").fingerprint() != before


def test_bad_images_are_named_or_counted(folder):
    (folder / "train/a/0.jpg").write_bytes((folder / "train/a/0.jpg").read_bytes()[:200])
    (folder / "train/b/x.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"train/a/0\.jpg cannot be decoded .*--skip_bad.*1 more bad"
    ):
        read_image_folder(folder, "train")
    images = read_image_folder(folder, "train", skip_bad=True)
    assert (len(images), images.skipped) == (5, 2)


def test_skip_bad_finds_what_only_decoding_finds(folder):
    (folder / "train/a/w.png").write_bytes(_png(damaged=False))
    (folder / "train/a/x.png").write_bytes(_png(damaged=True))
    with pytest.raises(UserError, match="cannot be decoded"):
        decode(folder / "train/a/x.png")
    images = read_image_folder(folder, "train", skip_bad=True)
    assert images.skipped == 1
    assert "train/a/w.png" in images.paths
    assert "train/a/x.png" not in images.paths


def test_a_thumbnails_end_mark_does_not_make_a_jpeg_whole(tmp_path):
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8)).save(thumbnail, "JPEG")
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail.getvalue()
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole, "JPEG", exif=exif)
    path = tmp_path / "x.jpg"
    path.write_bytes(whole.getvalue())
    assert check_images([path], skip_bad=False) == [True]
    start = whole.getvalue().index(thumbnail.getvalue())
    path.write_bytes(whole.getvalue()[: start + len(thumbnail.getvalue()) + 600])
    with pytest.raises(UserError, match=r"x\.jpg cannot be decoded"):
        check_images([path], skip_bad=False)


def test_a_bomb_is_a_line(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="cannot be decoded"):
        decode(folder / "train/a/0.jpg")


def test_modes_are_read_as_pillow_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
    for mode in ("L", "P", "CMYK", "RGBA", "LA", "1"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        rgb.convert(mode).save(path)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decode(path)), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    rgb.save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(decode(tmp_path / "turned.png"))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(rgb), -1))


def test_classes_of_two_splits_must_agree(folder):
    (folder / "val/c").mkdir(parents=True)
    with pytest.raises(UserError, match="val/c is a class that the other split does not have"):
        read_image_folder(folder, "val", classes=["a", "b"])
    with pytest.raises(UserError, match=r"class folder .*val/c has no images"):
        read_image_folder(folder, "val")


def test_official_names_need_official_counts(tmp_path):
    assert dataset_name(tmp_path, {"train": 1_281_167, "val": 50_000}) == "imagenet-1k"
    assert dataset_name(tmp_path, {"train": 1_281_166, "val": 50_000}) == tmp_path.name
    (tmp_path / "imagenet-1k").mkdir()  # as a folder is easily called
    for counts in ({"train": 3, "val": 2}, {"train": 1_281_166, "val": 50_000}):
        assert dataset_name(tmp_path / "imagenet-1k", counts) == "imagenet-1k (other counts)"
    (tmp_path / "siambench-data.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        dataset_name(tmp_path, {"train": 3})


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    write_text(path, "first")

    def dies_half_way():
        with atomic_path(path) as temporary:
            temporary.write_text("second, unfinis")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        dies_half_way()
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(UserError, match=r"cannot write .*a\.txt/b"):
        write_text(path / "b", "x")


def test_what_dead_processes_left_is_removed(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "a.txt"
    code = "from siambench.files import *; import os, sys; p = Path(sys.argv[1]); temporary_path(p).touch()"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    temporary_path(path).touch()  # ours: alive
    assert len(list(tmp_path.iterdir())) == 2
    assert len(leftovers(path)) == 1
    write_text(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_sixteen_bit_grey_keeps_its_picture_and_floats_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    for made in (np.asarray(decode(tmp_path / "deep.png")), decode_array(tmp_path / "deep.png")):
        np.testing.assert_allclose(made, np.repeat(ramp[:, :, None] / 256, 3, 2), atol=1)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float.tiff cannot be decoded \(its pixels are floats"):
        decode(tmp_path / "float.tiff")
