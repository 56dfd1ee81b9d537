"""Pictures of every mode, made byte by byte or by formula, are read as upright RGB."""

import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from siambench.data.images import decode, decode_array
from siambench.data.pictures import FileImages

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (6, 5), dtype=np.uint8)
GREY16 = rng.integers(0, 65536, (6, 5), dtype=np.uint16)
RGB = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
RGB16 = rng.integers(0, 65536, (6, 5, 3), dtype=np.uint16)
PALETTE = rng.integers(0, 256, (256, 3), dtype=np.uint8)
BITS = rng.integers(0, 2, (6, 5), dtype=np.uint8)


def png(path, values, colour, depth=8, **chunks):
    """A PNG as its specification has it: filter 0 in each row, chunks with their CRC."""
    height, width = values.shape[:2]
    if depth == 1:
        rows = np.packbits(values, axis=1)
    else:
        rows = values.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in {"IHDR": head, **chunks, "IDAT": data, "IEND": b""}.items():
        typed = name.encode() + body
        content += len(body).to_bytes(4, "big") + typed + zlib.crc32(typed).to_bytes(4, "big")
    path.write_bytes(content)


def three(grey):
    return np.repeat(grey[:, :, None], 3, 2)


@pytest.mark.parametrize(
    ("expected", "values", "colour", "depth", "chunks"),
    [
        (three(GREY), GREY, 0, 8, {}),
        (three(BITS * 255), BITS, 0, 1, {}),
        (three(GREY16 >> 8), GREY16, 0, 16, {}),
        (RGB, RGB, 2, 8, {}),
        (RGB16 >> 8, RGB16, 2, 16, {}),
        (PALETTE[GREY], GREY, 3, 8, {"PLTE": PALETTE.tobytes()}),
        (PALETTE[GREY], GREY, 3, 8, {"PLTE": PALETTE.tobytes(), "tRNS": bytes(range(256))}),
        (PALETTE[GREY], GREY, 3, 8, {"PLTE": PALETTE.tobytes(), "tRNS": b"\xff\0"}),
        (three(GREY), np.stack([GREY, GREY[::-1]], 2), 4, 8, {}),
        (RGB, np.dstack([RGB, GREY]), 6, 8, {}),
        (three(GREY), GREY, 0, 8, {"tRNS": b"\0\5"}),
    ],
    ids=[
        "grey",
        "bit",
        "grey16",
        "rgb",
        "rgb16",
        "palette",
        "palette+alpha",
        "palette+key",
        "la",
        "rgba",
        "grey+key",
    ],
)
def test_png_of_every_mode(tmp_path, expected, values, colour, depth, chunks):
    png(tmp_path / "x.png", values, colour, depth, **chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (
            decode(tmp_path / "x.png"),
            decode_array(tmp_path / "x.png"),
            FileImages(tmp_path, ["x.png"])[0],
        ):
            np.testing.assert_array_equal(np.asarray(made), expected)


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4"])
def test_sixteen_bit_tiff_and_pgm_keep_the_upper_bits(tmp_path, kind):
    Image.fromarray(GREY16.astype(kind)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(decode_array(tmp_path / "x.tif"), three(GREY16 >> 8))
    (tmp_path / "x.pgm").write_bytes(b"P5 5 6 65535\n" + GREY16.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_array(tmp_path / "x.pgm"), three(GREY16 >> 8))


def test_integers_that_are_eight_bits_stay_so(tmp_path):
    values = np.arange(0, 250, 10, dtype=np.int32).reshape(5, 5)
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(decode_array(tmp_path / "x.tif"), three(values))


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_is_light_that_the_inks_leave(tmp_path, suffix):
    inks = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 128, 255, 0], [40, 80, 120, 100]], np.uint8)
    image = np.repeat(np.repeat(inks[None], 16, 0), 16, 1)  # squares that JPEG keeps
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(image, "CMYK").save(tmp_path / f"x.{suffix}", **options)
    light = (255.0 - image[:, :, :3]) * (255.0 - image[:, :, 3:]) / 255
    made = decode_array(tmp_path / f"x.{suffix}").astype(float)
    np.testing.assert_allclose(made, light, atol=3 if suffix == "jpg" else 1)


UPRIGHT = {  # EXIF 2.32, 4.6.4 A, Orientation: where row 0 and column 0 are seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_rotation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(RGB).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    Image.fromarray(RGB).save(tmp_path / f"plain.{suffix}", **options)
    stored = np.asarray(Image.open(tmp_path / f"plain.{suffix}").convert("RGB"))
    made = np.asarray(FileImages(tmp_path, [f"x.{suffix}"])[0])
    np.testing.assert_array_equal(made, UPRIGHT[orientation](stored))


def test_a_colour_profile_changes_no_pixel(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(RGB).save(tmp_path / "x.png", icc_profile=profile)
    np.testing.assert_array_equal(decode_array(tmp_path / "x.png"), RGB)
