"""Whole-image and sliding-window inference, and batches of one size."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_processes import ALONE

from eval_segmentation import predict
from eval_segmentation.augment import resize_image, scaled_size
from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.model import FCN
from eval_segmentation.pairs import Pair, read_mask
from eval_segmentation.predict import batches, labels_of, logits_of, measure, slide_starts
from siambench.backbone import Backbone
from siambench.checkpoints.source import load_backbone
from siambench.data.images import decode_array
from siambench.distributed import World
from siambench.evaluation import Job
from siambench.features import normalise


def _config(**fields: object) -> SegmentConfig:
    return SegmentConfig(backbone="", data="", **fields)


@pytest.mark.parametrize("length", [5, 16, 17, 20, 31, 32, 100])
@pytest.mark.parametrize("stride", [1, 7, 16])
def test_windows_cover_the_side_and_stay_inside(length: int, stride: int) -> None:
    starts = slide_starts(length, 16, stride)
    covered = {x for s in starts for x in range(s, min(s + 16, length))}
    assert covered == set(range(length))
    assert all(s == 0 or s + 16 <= length for s in starts)
    assert all(b - a <= stride for a, b in pairwise(starts))
    assert len(starts) == len(set(starts))


def test_windows_of_cityscapes() -> None:
    assert slide_starts(2049, 769, 513) == [0, 513, 1026, 1280]
    assert slide_starts(1025, 769, 513) == [0, 256]


class Columns(nn.Module):
    """Logits that are the window's own column numbers: overlaps differ, so their mean shows."""

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        return torch.arange(float(images.shape[3])).expand(
            images.shape[0], 2, *images.shape[2:]
        ), None


def test_overlaps_are_averaged() -> None:
    config = _config(inference="slide", crop=4, slide_stride=2)
    logits = logits_of(Columns(), torch.zeros(1, 3, 4, 6), config)
    assert logits[0, 0, 0].tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]


def test_a_window_as_large_as_the_image_is_the_whole_image(backbone_file: Path) -> None:
    torch.manual_seed(0)
    model = FCN(
        load_backbone(backbone_file),
        4,
        SegmentConfig(backbone="", data="", head_channels=8, aux_channels=8),
    ).eval()
    images = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        whole = logits_of(model, images, _config(inference="whole"))
        slide = logits_of(model, images, _config(inference="slide", crop=64, slide_stride=32))
    assert whole.shape == (2, 4, 40, 56)
    torch.testing.assert_close(slide, whole)


def test_batches_hold_one_size_and_every_image_once() -> None:
    sizes = [(500, 375), (375, 500), (500, 375), (500, 375), (3000, 2000)] * 4
    pairs = [Pair(Path("i"), Path("m"), size) for size in sizes]
    shares = [batches(pairs, _config(), World(r, 3, torch.device("cpu"))) for r in range(3)]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(20))
    for batch in (batch for share in shares for batch in share):
        assert len({sizes[i] for i in batch}) == 1
        assert len(batch) * 683 * 512 <= 2_100_000 or len(batch) == 1
    loads = [sum(sizes[i][0] * sizes[i][1] for batch in share for i in batch) for share in shares]
    assert max(loads) <= 2.1 * min(loads)  # of four images of 6 million pixels one has two
    alone = batches(pairs, _config(), ALONE)
    assert sorted(alone) == sorted(batch for share in shares for batch in share)
    large = _config(long_edge=10_000, short_edge=10_000)
    assert [len(b) for b in batches(pairs[4:5], large, ALONE)] == [1]  # one too large goes alone


class Colours(nn.Module):
    """Logits that are the pixels themselves: three classes."""

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        return images, None


def test_mirrored_and_scaled_versions_are_averaged() -> None:
    """Restated with probabilities pixel by pixel; a picture and its mirror image give mirrored labels."""
    torch.manual_seed(0)
    images = [torch.randn(2, 3, 8, 12), torch.randn(2, 3, 5, 7)]
    config = _config(inference="whole", test_flip=True)
    found = labels_of(Colours(), images, (8, 12), config)
    mean = torch.zeros(2, 3, 8, 12)
    for image in images:
        large = F.interpolate(image, (8, 12), mode="bilinear", align_corners=False)
        mean += large.exp() / large.exp().sum(1, keepdim=True)  # this network mirrors as it is
    assert torch.equal(found, mean.argmax(1))
    mirrored = labels_of(Colours(), [image.flip(3) for image in images], (8, 12), config)
    assert torch.equal(mirrored.flip(2), found)
    plain = labels_of(Colours(), images[:1], (8, 12), _config(inference="whole"))
    assert torch.equal(plain, images[0].argmax(1))


def test_windows_by_brute_force() -> None:
    """Each pixel the mean of the windows over it, whose logits tell them apart; an odd, a small image."""
    torch.manual_seed(0)
    for height, width in ((13, 17), (5, 11)):
        images = torch.randn(1, 1, height, width)
        config = _config(inference="slide", crop=8, slide_stride=3)

        class Whitened(nn.Module):
            def forward(self, window: Tensor) -> tuple[Tensor, None]:
                return (window - window.mean()) / window.std(), None

        found = logits_of(Whitened(), images, config)[0, 0]
        for y in range(height):
            for x in range(width):
                values = []
                for top in {min(t, max(height - 8, 0)) for t in range(0, height, 3)}:
                    for left in {min(t, max(width - 8, 0)) for t in range(0, width, 3)}:
                        if top <= y < top + 8 and left <= x < left + 8:
                            window = images[0, 0, top : top + 8, left : left + 8]
                            values.append((images[0, 0, y, x] - window.mean()) / window.std())
                torch.testing.assert_close(found[y, x], torch.stack(values).mean())


def test_measured_together_as_one_by_one(
    scenes: Path, backbone_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confusion of the set and the predictions asked for do not depend on the batches."""
    config = SegmentConfig(
        backbone="", data=str(scenes / "VOCdevkit"), long_edge=96, short_edge=64, head_channels=8
    )
    data, backbone = open_data(config), load_backbone(backbone_file)
    torch.manual_seed(0)
    model = FCN(backbone, len(data.classes), config).eval()
    nn.init.normal_(model.head.classifier.weight)  # so that it predicts several classes
    job = Job(0, 0, torch.device("cpu"), 0, scenes, "key", "segment")
    matrix, kept = measure(model, backbone.meta, data, config, job, [0, 3])
    monkeypatch.setattr(predict, "BATCH_IMAGES", 1)
    again, same = measure(model, backbone.meta, data, config, job, [0, 3])
    assert torch.equal(matrix, again)
    assert (matrix.sum(0) > 0).sum() > 1
    brute = torch.zeros_like(matrix)
    for index, pair in enumerate(data.val):
        truth = read_mask(pair.mask, data.table)
        pixels = resize_image(decode_array(pair.image), scaled_size(pair.size, 96, 64))
        x = normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None], *_moments(backbone))
        with torch.inference_mode():
            logits = F.interpolate(model(x)[0], pixels.shape[:2], mode="bilinear")
        guess = F.interpolate(logits, truth.shape, mode="bilinear").argmax(1)[0].numpy()
        for label, prediction in zip(truth.ravel(), guess.ravel(), strict=True):
            if label != 255:
                brute[label, prediction] += 1
        if index in (0, 3):
            assert np.array_equal(kept[index], guess)
            assert np.array_equal(same[index], guess)
    assert torch.equal(matrix, brute)
    assert sorted(kept) == [0, 3]


def _moments(backbone: Backbone) -> tuple[Sequence[float], Sequence[float]]:
    return backbone.meta.mean, backbone.meta.std
