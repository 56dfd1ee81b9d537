"""segmentation.png: which colour lies where, read back from its pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import jaccard_score

from eval_segmentation.pairs import Pair, SegmentationData, read_mask
from eval_segmentation.pictures import MOST, SHADES, draw_pictures, shown
from siambench.record import DatasetInfo
from siambench.sheet import GAP, INK, LINE, PAPER, RGB, sheet

TABLE = np.arange(256, dtype=np.uint8)
PALETTE = [(0, 0, 0), (250, 0, 10), (0, 201, 77)]
GREY = 100


def data(
    folder: Path, masks: list[np.ndarray], palette: list[tuple[int, int, int]] = PALETTE
) -> SegmentationData:
    """Grey images and these masks."""
    val = []
    for i, mask in enumerate(masks):
        pair = Pair(folder / f"{i}.png", folder / f"{i}_mask.png", mask.shape[::-1])
        Image.new("RGB", pair.size, (GREY,) * 3).save(pair.image)
        Image.fromarray(mask).save(pair.mask)
        val.append(pair)
    classes = [f"class {i}" for i in range(len(palette))]
    return SegmentationData(classes, TABLE, [], val, DatasetInfo("x", "y", {}), palette)


def mask(height: int = 160, width: int = 200) -> np.ndarray:
    """Left half 0, right half 1, between them a strip that is not labelled."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    labels[:, width // 2 - 5 : width // 2 + 5] = 255
    return labels


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image.convert("RGB")).astype(int)


def tinted(label: int) -> tuple[int, ...]:
    """The middle of the shade of GREY under 60 % of the label's colour."""
    grey = (GREY * SHADES // 256 + 0.5) * 256 / SHADES
    return tuple(round(0.6 * value + 0.4 * grey) for value in PALETTE[label])


def test_labels_have_their_colours_and_what_is_not_labelled_is_white(tmp_path: Path) -> None:
    truth = mask()
    prediction = np.full_like(truth, 2)
    prediction[:80] = 0
    draw_pictures(data(tmp_path, [truth]), {0: prediction}, tmp_path / "out.png")
    page = read(tmp_path / "out.png")
    left, right = (page[-GAP - 160 : -GAP, x : x + 200] for x in (GAP, 2 * GAP + 200))
    for picture, labels in ((left, truth), (right, prediction)):
        for label in np.unique(labels):
            colour = PAPER if label == 255 else tinted(label)
            np.testing.assert_array_equal((picture == colour).all(-1), labels == label)


def swatches(page: np.ndarray, rows: int) -> dict[tuple[int, ...], int]:
    """How many pixels have each colour, greys left out, in the lines above the first picture."""
    found, counts = np.unique(page[:rows].reshape(-1, 3), axis=0, return_counts=True)
    return {
        tuple(c): n for c, n in zip(found.tolist(), counts.tolist(), strict=True) if len({*c}) > 1
    }


def test_the_legend_has_the_classes_that_occur(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = drawn_texts(monkeypatch)
    plain = np.ones((160, 200), np.uint8)
    for truth, prediction, expected in (
        (plain, plain, {PALETTE[1]: 81}),
        (plain, plain * 2, {PALETTE[1]: 81, PALETTE[2]: 81}),
    ):
        draw_pictures(data(tmp_path, [truth]), {0: prediction}, tmp_path / "out.png")
        page = read(tmp_path / "out.png")
        assert len(page) == GAP + LINE + GAP + LINE + 160 + GAP
        assert swatches(page, GAP + LINE + GAP + LINE) == expected
    assert texts[:2] == ["class 1", "0: ground truth"]
    assert texts[3:5] == ["class 1", "class 2"]


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, what, *a, **k: (texts.append(what), text(self, at, what, *a, **k))[1],
    )
    return texts


def test_names_and_each_images_own_miou(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, 2, 255], (160, 200)).astype(np.uint8), mask()]
    truths.append(np.full((160, 200), 255, np.uint8))
    predictions = [rng.integers(0, 3, (160, 200)).astype(np.uint8) for _ in truths]
    texts = drawn_texts(monkeypatch)
    draw_pictures(data(tmp_path, truths), dict(enumerate(predictions)), tmp_path / "out.png")
    assert texts[:4] == ["class 0", "class 1", "class 2", "not labelled"]
    for i in range(2):
        there = truths[i] != 255
        miou = jaccard_score(truths[i][there], predictions[i][there], average="macro")
        expected = [f"{i}: ground truth", f"prediction, mIoU {100 * miou:.1f}"]
        assert texts[4 + 2 * i : 6 + 2 * i] == expected
    assert texts[9] == "prediction, mIoU -"


def test_some_images_spread_evenly(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "a.jpg", tmp_path / "a.png", (9, 9))
    info = DatasetInfo("x", "y", {})
    for n, expected in ((26, [0, 5, 10, 15, 20, 25]), (3, [0, 1, 2])):
        assert shown(SegmentationData([], TABLE, [], [pair] * n, info, [])) == expected
    assert MOST == 6


def test_large_and_small_images(tmp_path: Path) -> None:
    masks = [mask(1024, 2048), mask(30, 40)]
    predictions = {i: np.where(m == 255, 0, m).astype(np.uint8) for i, m in enumerate(masks)}
    draw_pictures(data(tmp_path, masks), predictions, tmp_path / "out.png")
    page = read(tmp_path / "out.png")
    assert page.shape[:2] == (2 * GAP + LINE + 200 + GAP + LINE + 120 + GAP + LINE, 3 * GAP + 800)
    for y, height, width in (
        (GAP + LINE + GAP + LINE, 200, 400),
        (len(page) - GAP - 120, 120, 160),
    ):
        picture = page[y : y + height, GAP : GAP + width].reshape(-1, 3).tolist()
        # labels are never mixed at their edges
        assert {tuple(colour) for colour in picture} == {tinted(0), tinted(1), PAPER}


def test_many_classes_keep_their_colours(tmp_path: Path) -> None:
    """100 swatches and 100 tints are exact; more classes than a palette holds are no error."""
    for classes, exact in ((100, True), (200, False)):
        palette = [(i, 255 - i, (37 * i) % 256) for i in range(classes)]
        labels = np.arange(classes).repeat(160 * 200 // classes).astype(np.uint8).reshape(160, 200)
        of = data(tmp_path, [labels], palette)
        draw_pictures(of, {0: labels}, tmp_path / "out.png")
        there = {tuple(c) for c in read(tmp_path / "out.png").reshape(-1, 3).tolist()}
        tints = {tuple(round(0.6 * v + 0.4 * 128) for v in colour) for colour in palette}
        assert ({*palette, *tints} <= there) == exact


def test_six_photographs_are_a_small_file_with_the_same_bytes_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = [
        rng.integers(0, 21, (6, 8)).astype(np.uint8).repeat(64, 0).repeat(64, 1) for _ in "six"
    ]
    masks = [block[:375, :500] for block in blocks * 2]
    palette = [tuple(colour) for colour in rng.integers(0, 256, (21, 3)).tolist()]
    of = data(tmp_path, masks, palette)
    for pair in of.val:
        noise = rng.normal(128, 40, (94, 125, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).resize(pair.size, Image.Resampling.BICUBIC).save(pair.image)
    predictions = dict(enumerate(masks))
    draw_pictures(of, predictions, tmp_path / "out.png")
    first = (tmp_path / "out.png").read_bytes()
    draw_pictures(of, dict(reversed(predictions.items())), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == first
    assert len(first) < 300_000


def test_the_embedded_scenes(tmp_path: Path, scenes: Path) -> None:
    from eval_segmentation.config import SegmentConfig
    from eval_segmentation.data import open_data

    of = open_data(SegmentConfig(backbone="", data=str(scenes / "VOCdevkit")))
    truths = {i: read_mask(of.val[i].mask, of.table) for i in shown(of)}
    predictions = {i: np.where(t == 255, 0, t).astype(np.uint8) for i, t in truths.items()}
    draw_pictures(of, predictions, tmp_path / "out.png")
    there = {tuple(c) for c in read(tmp_path / "out.png").reshape(-1, 3).tolist()}
    for label in {label for t in predictions.values() for label in t.ravel().tolist()}:
        assert tuple(of.palette[label]) in there


def test_a_sheet_keeps_the_named_colours_exactly_among_thousands() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 200, 3)).astype(np.uint8)
    marked = noise.copy()
    marked[50:60, 50:60] = RGB[0]
    marked[70:80, 70:80] = RGB[1]
    made = sheet([("a", "b", Image.fromarray(noise), Image.fromarray(marked))])
    page = np.asarray(made.convert("RGB"))[GAP + LINE :, 2 * GAP + 200 :][:200, :200]
    assert (page[50:60, 50:60] == RGB[0]).all()
    assert (page[70:80, 70:80] == RGB[1]).all()
    error = abs(page.astype(int) - marked.astype(int))
    assert error.mean() < 30  # the others share the rest, each with one near it
    assert len(made.getcolors()) <= 256


def test_a_legend_breaks_into_lines_and_long_names_end_in_dots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = drawn_texts(monkeypatch)
    picture = Image.new("RGB", (160, 40))
    names = ["n" * 90, *(f"name {i}" for i in range(9))]
    made = sheet([("", "", picture, picture)], legend=[(name, INK) for name in names])
    assert texts[0] == "n" * 24 + "..."
    lines = (made.height - (GAP + GAP + LINE + 40 + GAP)) // LINE
    assert lines > 2
    assert made.height == GAP + lines * LINE + GAP + LINE + 40 + GAP
