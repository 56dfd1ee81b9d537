"""Batches: what they hold, how they are resized, mirrored, padded and shared out."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval_detection.config import DetectConfig
from eval_detection.samples import Sample, as_sample
from eval_detection.torchvision_engine.loader import (
    EvalBatches,
    Normalise,
    TrainBatches,
    TrainImages,
    draws,
    padded_shape,
    resized_shape,
)


def config_of(**changes) -> DetectConfig:
    return DetectConfig(backbone="", data="", **changes)


def test_batches_depend_on_the_seed_alone_and_share_an_orientation() -> None:
    samples = [as_sample(Path("x"), i, 60, 40 + 40 * (i % 2), [], []) for i in range(21)]
    batches = list(islice(draws(samples, 4, seed=3), 40))
    assert batches == list(islice(draws(samples, 4, seed=3), 40))
    assert batches != list(islice(draws(samples, 4, seed=4), 40))
    for batch in batches:
        assert len({index % 2 for index, _ in batch}) == 1
    counts = np.bincount([index for batch in batches for index, _ in batch], minlength=21)
    assert counts.min() >= 160 // 21 - 1
    numbers = [count for batch in batches for _, count in batch]
    assert len(set(numbers)) == len(numbers)


def test_shapes() -> None:
    assert resized_shape(375, 500, 800, 1333) == (800, 1067)
    assert resized_shape(300, 900, 800, 1333) == (444, 1333)
    assert padded_shape([(800, 1067), (832, 640)], 1) == (832, 1067)
    assert padded_shape([(800, 1067), (832, 640)], 32) == (832, 1088)


def square_picture(folder: Path, height: int = 60, width: int = 90) -> Sample:
    """A dark picture with one bright square at (10..20, 30..38), its box and its masks."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[30:38, 10:20] = 255
    path = folder / f"{height}x{width}.png"
    Image.fromarray(pixels).save(path)
    polygon = np.array([10.0, 30, 20, 30, 20, 38, 10, 38])
    bitmap = np.ascontiguousarray(pixels[:, :, 0] // 255)
    boxes = [[10.0, 30, 20, 38]] * 2
    return as_sample(path, 1, height, width, boxes, [4, 4], masks=[[polygon], bitmap])


def test_boxes_and_masks_follow_the_image(tmp_path: Path) -> None:
    sample = square_picture(tmp_path)
    images = TrainImages([sample], config_of(min_size_train=[120], flip=True), seed=0)
    mirrored = set()
    for count in range(8):
        image, target = images[0, count]
        assert image.size == (180, 120)
        x0, y0, x1, y1 = (int(v) for v in target.boxes[0])
        bright = (np.asarray(image)[:, :, 0] > 128).nonzero()
        assert abs(int(bright[1].min()) - x0) <= 1
        assert abs(int(bright[1].max()) + 1 - x1) <= 1
        assert (y0, y1) == (60, 76)
        polygon, bitmap = target.masks
        assert (polygon[0][0::2].min(), polygon[0][0::2].max()) == (x0, x1)
        assert bitmap[y0:y1, x0:x1].all()
        assert bitmap.sum() == (x1 - x0) * (y1 - y0)
        mirrored.add(x0 > 90)
        assert images[0, count][0] == image
    assert mirrored == {True, False}
    straight = TrainImages([sample], config_of(min_size_train=[120], flip=False), seed=0)
    assert all(straight[0, count][1].boxes[0, 0] == 20 for count in range(8))


def test_sizes_are_drawn_from_the_list(tmp_path: Path) -> None:
    config = config_of(min_size_train=[60, 80])
    images = TrainImages([square_picture(tmp_path)], config, seed=0)
    assert {images[0, count][0].height for count in range(12)} == {60, 80}


def test_processes_hold_the_parts_of_one_batch(tmp_path: Path) -> None:
    """Each its images, but as large as the largest of all, and as the network wants it."""
    samples = [square_picture(tmp_path, height, 90) for height in (50, 60, 70, 80)]
    images = TrainImages(samples, config_of(min_size_train=[50, 100]), seed=1)
    drawn = [(0, 0), (1, 1), (2, 2), (3, 3)]
    whole = TrainBatches(images, divisible=32)[drawn]
    parts = [TrainBatches(images, 32, rank, 2)[drawn] for rank in range(2)]
    assert whole.pixels.shape[1:3] == padded_shape([images.augmentation(d)[0] for d in drawn], 32)
    assert torch.equal(torch.cat([p.pixels for p in parts]), whole.pixels)
    assert torch.equal(torch.cat([p.boxes for p in parts]), whole.boxes)
    assert parts[0].sizes + parts[1].sizes == whole.sizes
    cpu = torch.device("cpu")
    targets = [target for part in parts for target in part.targets(cpu)]
    for target, alone, (height, width) in zip(
        targets, whole.targets(cpu), whole.sizes, strict=True
    ):
        assert torch.equal(target.boxes, alone.boxes)
        assert torch.equal(target.labels, torch.tensor([4, 4]))
        assert target.masks[1].shape == (height, width)
    for pixels, draw, (height, width) in zip(whole.pixels, drawn, whole.sizes, strict=True):
        image = np.asarray(images[draw][0])
        assert np.array_equal(pixels[:height, :width], image)


def test_padding_is_zero_after_normalisation() -> None:
    pixels = torch.zeros(2, 8, 6, 3, dtype=torch.uint8)
    pixels[0, :4] = 255
    normalise = Normalise((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    batch = normalise(pixels, [(4, 6), (8, 5)])
    assert batch.shape == (2, 3, 8, 6)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (batch[0, :, :4] == 2).all()
    assert (batch[0, :, 4:] == 0).all()
    assert (batch[1, :, :, :5] == -2).all()
    assert (batch[1, :, :, 5:] == 0).all()


def test_test_batches_have_one_size_and_hold_everything(tmp_path: Path) -> None:
    samples = [square_picture(tmp_path, height, 90) for height in (60, 50, 60, 60, 50)]
    batches = EvalBatches(samples, config_of(min_size_test=120), divisible=32)
    assert batches.groups(2) == [[0, 2], [3], [1, 4]]
    pixels = batches[[0, 2]]
    assert pixels.shape == (2, 128, 192, 3)
    assert (batches.sizes[0], batches.sizes[1]) == ((120, 180), (120, 216))
    expected = Image.open(samples[0].path).resize((180, 120), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels[1, :120, :180], np.asarray(expected))
    assert not pixels[:, 120:].any()
    assert not pixels[:, :, 180:].any()


@pytest.mark.detectron2
def test_pixels_are_detectron2s(scenes: Path) -> None:
    """Decoding, resizing and mirroring, bit for bit."""
    from detectron2.data import detection_utils
    from detectron2.data import transforms as T

    path = sorted((scenes / "VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[0]
    with Image.open(path) as picture:
        width, height = picture.size
    images = TrainImages(
        [as_sample(path, 1, height, width, [], [])], config_of(min_size_train=[57]), 0
    )
    seen = set()
    for draw in ((0, count) for count in range(6)):
        (high, wide), mirror = images.augmentation(draw)
        expected = T.ResizeShortestEdge([57], 1333, sample_style="choice").get_transform(
            detection_utils.read_image(path, format="RGB")
        )
        assert (expected.new_h, expected.new_w) == (high, wide)
        pixels = expected.apply_image(detection_utils.read_image(path, format="RGB"))
        if mirror:
            pixels = T.HFlipTransform(wide).apply_image(pixels)
        assert np.array_equal(np.asarray(images[draw][0]), pixels)
        seen.add(mirror)
    assert seen == {True, False}
