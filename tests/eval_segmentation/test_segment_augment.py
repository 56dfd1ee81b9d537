"""Training crops: sizes, alignment of image and labels, redraws, distortion, reproducibility."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval_segmentation.augment import (
    TrainCrops,
    choose_crop,
    distort,
    resize_image,
    scaled_size,
)
from eval_segmentation.config import SegmentConfig
from eval_segmentation.pairs import IGNORE, Pair, SegmentationData
from siambench.record import DatasetInfo


class Draws:
    """A generator whose uniform and integer draws are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, low: float, high: float) -> float:
        value = self.values.pop(0)
        assert low <= value <= high
        return value

    def integers(self, low: int, high: int | None = None) -> int:
        value = int(self.values.pop(0))
        assert (0 if high is None else low) <= value < (low if high is None else high)
        return value


def _data(tmp_path: Path, size: tuple[int, int] = (90, 60)) -> SegmentationData:
    """One image per half: label 1 is white, label 0 black, 255 grey."""
    pairs = []
    for number in range(5):
        labels = np.zeros(size[::-1], np.uint8)
        labels[:, : size[0] // 2] = 1
        labels[-10:] = IGNORE
        levels = np.where(labels == IGNORE, 128, labels * 255).astype(np.uint8)
        Image.fromarray(np.repeat(levels[..., None], 3, 2)).save(tmp_path / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / f"{number}_mask.png")
        pairs.append(Pair(tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png", size))
    table = np.full(256, IGNORE, np.uint8)
    table[:2] = 0, 1
    return SegmentationData(["a", "b"], table, pairs, pairs, DatasetInfo("x", "", {}))


def _crops(data: SegmentationData, seed: int = 0, **fields: object) -> TrainCrops:
    defaults = {"long_edge": 240, "short_edge": 60, "crop": 48, "iterations": 5, "batch_size": 4}
    config = SegmentConfig(backbone="", data="", **{**defaults, **fields})
    return TrainCrops(data, config, seed, (10.4, 20.6, 30.0))


@pytest.mark.parametrize(
    ("size", "edges", "expected"),
    [
        ((500, 375), (0, 0), (500, 375)),  # its own size
        ((500, 375), (2048, 512), (683, 512)),  # VOC: the shorter side decides
        ((375, 500), (2048, 512), (512, 683)),
        ((2048, 1024), (2049, 1025), (2049, 1025)),  # Cityscapes
        ((1000, 100), (2048, 512), (2048, 205)),  # the longer side decides
        ((3, 1000), (8, 8), (1, 8)),  # never nothing
    ],
)
def test_scaled_size(
    size: tuple[int, int], edges: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert scaled_size(size, *edges) == expected


def test_resize_is_plain_bilinear() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for size in ((15, 20), (61, 77)):
        ours = torch.from_numpy(resize_image(pixels, size)).permute(2, 0, 1).float()
        exact = F.interpolate(
            torch.from_numpy(pixels).permute(2, 0, 1)[None].double(), size[::-1], mode="bilinear"
        )[0]
        assert (ours - exact).abs().max() <= 1


def test_image_and_labels_stay_together(tmp_path: Path) -> None:
    crops = _crops(_data(tmp_path), distort=False)
    seen = set()
    for index in range(len(crops)):
        image, labels = crops[index]
        assert image.shape == (3, 48, 48)
        assert image.dtype == labels.dtype == torch.uint8
        inside = labels != IGNORE
        agree = (image[0] > 127) == (labels == 1)
        assert agree[inside].float().mean() > 0.97  # all but the blurred edges
        left = (labels == 1) & inside
        if left.any() and (labels == 0).any():
            columns = torch.arange(48).expand(48, 48)
            seen.add(bool(columns[left].float().mean() < columns[labels == 0].float().mean()))
    assert seen == {True, False}  # flipped and not
    plain = _crops(_data(tmp_path), distort=False, flip=False)
    for index in range(len(plain)):
        _, labels = plain[index]
        row = labels[0].tolist()
        assert row == sorted(row, key=lambda v: (v == IGNORE, v == 0))  # 1s, then 0s, then fill


def test_small_images_are_filled_with_the_mean_and_ignored(tmp_path: Path) -> None:
    crops = _crops(
        _data(tmp_path, (30, 20)), distort=False, flip=False, ratio_max=0.5, short_edge=20
    )
    image, labels = crops[0]
    assert image[:, 10:].float().mean((1, 2)).tolist() == [10, 21, 30]
    assert image[:, :, 15:].float().mean((1, 2)).tolist() == [10, 21, 30]
    assert bool((labels[10:] == IGNORE).all())
    assert bool((labels[:, 15:] == IGNORE).all())
    assert bool((labels[:5, :15] != IGNORE).all())


def test_every_epoch_shows_every_image_once_in_a_new_order(tmp_path: Path) -> None:
    data = _data(tmp_path)
    for number, pair in enumerate(data.train):  # image number in the pixels
        Image.new("RGB", (90, 60), (50 * number,) * 3).save(pair.image)
    crops = _crops(data, distort=False)
    order = [int(crops[i][0][0, 0, 0]) // 50 for i in range(20)]
    epochs = [order[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_crop_depends_on_seed_and_place_alone(tmp_path: Path) -> None:
    data = _data(tmp_path)
    first = _crops(data)
    one_way = [first[i] for i in range(20)]
    second = _crops(data)
    for i in reversed(range(20)):
        assert all(torch.equal(a, b) for a, b in zip(second[i], one_way[i], strict=True))
    other = _crops(data, seed=1)
    assert any(not torch.equal(other[i][0], one_way[i][0]) for i in range(20))


def test_crop_is_drawn_again_while_one_class_fills_it() -> None:
    labels = np.zeros((10, 100), np.uint8)
    labels[:, 90:] = 1
    labels[:, 50:60] = IGNORE
    assert choose_crop(labels, 10, 0.75, Draws(0, 0, 0, 55, 0, 85)) == (0, 85)  # half and half
    with pytest.raises(IndexError):  # a third draw is wanted: 80 % is too much
        choose_crop(labels, 10, 0.75, Draws(0, 0, 0, 82))
    stubborn = Draws(*[0] * 20, 0, 7)
    assert choose_crop(labels, 10, 0.75, stubborn) == (0, 7)  # the tenth draw, good or not
    assert not stubborn.values
    assert choose_crop(labels, 10, 1.0, Draws(0, 3)) == (0, 3)
    assert choose_crop(labels, 200, 1.0, Draws(0, 0)) == (0, 0)


def test_distortion_by_hand() -> None:
    pixels = np.array([[[200, 100, 50], [10, 240, 128]]], np.uint8)
    nothing = Draws(0.9, 0.9, 0.9, 0.9, 0.9)
    assert np.array_equal(distort(pixels, nothing), pixels)
    # brightness +30, then contrast × 1.5 (early), no saturation, no hue
    both = distort(pixels, Draws(0.1, 30.0, 0.1, 0.1, 1.5, 0.9, 0.9))
    assert both.tolist() == [[[255, 195, 120], [60, 255, 237]]]
    # contrast × 0.5 (late)
    assert distort(pixels, Draws(0.9, 0.9, 0.9, 0.9, 0.1, 0.5)).tolist() == [
        [[100, 50, 25], [5, 120, 64]]
    ]
    # saturation × 0.5: value stays, the other channels move half way to it
    half = distort(pixels, Draws(0.9, 0.9, 0.1, 0.5, 0.9, 0.9)).astype(int)
    assert np.abs(half - [[[200, 150, 125], [125, 240, 184]]]).max() <= 3
    # hue by 15 of OpenCV's units, 30 degrees: red turns to orange
    turned = distort(np.array([[[255, 0, 0]]], np.uint8), Draws(0.9, 0.9, 0.9, 0.1, 15, 0.9))
    assert np.abs(turned.astype(int) - [255, 128, 0]).max() <= 4


def test_distortion_leaves_grey_grey() -> None:
    grey = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], 3, 2)
    rng = np.random.default_rng(0)
    moved = [distort(grey, rng) for _ in range(20)]
    assert all(np.ptp(m, axis=2).max() == 0 for m in moved)
    assert any(not np.array_equal(m, grey) for m in moved)


class Bounds:
    """A generator that always tosses heads and notes between what it is asked to draw."""

    def __init__(self) -> None:
        self.asked: set[tuple[float, float]] = set()

    def random(self) -> float:
        return 0.0

    def uniform(self, low: float, high: float) -> float:
        self.asked.add((low, high))
        return (low + high) / 2

    integers = uniform


def test_distortion_draws_between_mmsegmentations_bounds() -> None:
    """brightness_delta 32, contrast and saturation 0.5 to 1.5, hue_delta 18."""
    bounds = Bounds()
    distort(np.zeros((2, 2, 3), np.uint8), bounds)
    assert bounds.asked == {(-32, 32), (0.5, 1.5), (-18, 18)}


def test_a_class_may_fill_a_share_of_what_is_labelled() -> None:
    """Not of the crop: two thirds of the labelled pixels, a third of all."""
    labels = np.full((2, 6), IGNORE, np.uint8)
    labels[:, :2], labels[:, 2] = 1, 2
    draws = Draws(*[0, 0] * 11)
    choose_crop(labels, 6, 0.5, draws)
    assert not draws.values  # drawn again as often as may be
    draws = Draws(0, 0)
    choose_crop(labels, 6, 0.7, draws)
    assert not draws.values
