"""decode_array: bit for bit what Pillow gives, and the same refusals."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from siambench.data import images
from siambench.data.images import decode, decode_array
from siambench.errors import UserError


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_images().images[0]).resize((203, 151))


@pytest.fixture
def slow(monkeypatch):
    """Counts the files that Pillow decodes."""
    calls = []
    monkeypatch.setattr(images, "decode", lambda path: (calls.append(path), decode(path))[1])
    return calls


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"progressive": True},
        {"quality": 30, "optimize": True},
        {"restart_marker_rows": 1},
        {"comment": "x" * 300, "icc_profile": b"y" * 70_000, "dpi": (72, 72)},
        {"exif": _exif(1)},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(203, 151), (16, 16), (1, 9)])
def test_usual_jpegs_are_decoded_fast_and_bit_equal(tmp_path, photo, slow, options, mode, size):
    path = tmp_path / "a.jpg"
    photo.resize(size).convert(mode).save(path, "JPEG", **options)
    ours = decode_array(path)
    np.testing.assert_array_equal(ours, np.asarray(Image.open(path).convert("RGB")))
    assert ours.dtype == np.uint8
    assert ours.flags.writeable
    assert not slow


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings_are_bit_equal_too(tmp_path, photo, subsampling):
    path = tmp_path / "a.jpg"
    pixels = np.array(photo)
    path.write_bytes(simplejpeg.encode_jpeg(pixels, 85, colorsubsampling=subsampling))
    np.testing.assert_array_equal(decode_array(path), np.asarray(decode(path)))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_rotated_jpegs_stand_upright(tmp_path, photo, slow, orientation):
    path = tmp_path / "a.jpg"
    photo.save(path, exif=_exif(orientation))
    np.testing.assert_array_equal(decode_array(path), np.asarray(decode(path)))
    assert slow
    assert decode_array(path).shape[:2] == ((203, 151) if orientation > 4 else (151, 203))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "CMYK", {}),
        ("a.jpg", "RGB", {"keep_rgb": True}),
        ("a.png", "RGB", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "P", {}),
        ("a.bmp", "RGB", {}),
        ("a.webp", "RGB", {}),
    ],
)
def test_other_files_go_through_pillow(tmp_path, photo, slow, name, mode, options):
    path = tmp_path / name
    photo.convert(mode).save(path, **options)
    np.testing.assert_array_equal(decode_array(path), np.asarray(decode(path)))
    assert slow


def test_orientation_told_by_xmp_counts_too(tmp_path, photo):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    photo.save(tmp_path / "a.jpg", xmp=xmp)
    assert decode_array(tmp_path / "a.jpg").shape == (203, 151, 3)
    np.testing.assert_array_equal(
        decode_array(tmp_path / "a.jpg"), np.asarray(decode(tmp_path / "a.jpg"))
    )


def test_damaged_files_are_judged_as_by_pillow(tmp_path, photo):
    whole = io.BytesIO()
    photo.save(whole, "JPEG", quality=90)
    data = whole.getvalue()
    rng = np.random.default_rng(0)
    broken = {
        "cut": data[: len(data) // 2],
        "head": data[:40],
        "no-end": data[:-2],
        "empty": b"",
        "mark": b"\xff\xd8\xff",
        "tail": data + b"rubbish",
        "text": b"no image at all " * 20,
    }
    for i in range(60):
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data) if i % 2 else 700))] ^= 1 << int(rng.integers(8))
        broken[f"bit{i}"] = bytes(flipped)

    def read(decoder, path):
        try:
            return np.asarray(decoder(path))
        except UserError as error:
            return str(error)

    refused = 0
    for name, content in broken.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        expected = read(decode, path)
        np.testing.assert_array_equal(read(decode_array, path), expected, err_msg=name)
        refused += isinstance(expected, str)
    assert 5 <= refused < 60
    with pytest.raises(UserError, match="does not exist"):
        decode_array(tmp_path / "absent.jpg")


def test_a_picture_beyond_pillows_limit_is_pillows_to_refuse(tmp_path, photo, monkeypatch):
    path = tmp_path / "a.jpg"
    photo.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="cannot be decoded"):
        decode_array(path)
