"""Whole-image and sliding-window inference, and batches of one size."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval_segmentation.config import SegmentConfig
from eval_segmentation.model import FCN
from eval_segmentation.pairs import Pair
from eval_segmentation.predict import batches, logits_of, slide_starts
from siambench.checkpoints.source import load_backbone


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
    found = batches(pairs, _config())
    assert sorted(i for batch in found for i in batch) == list(range(20))
    for batch in found:
        assert len({sizes[i] for i in batch}) == 1
        assert len(batch) * 683 * 512 <= 2_100_000
    assert sorted(len(batch) for batch in found) == [1] * 4 + [4] * 4  # of 16 at most 5, evenly
    assert [len(b) for b in batches(pairs[4:5], _config(long_edge=10_000, short_edge=10_000))] == [
        1
    ]  # one too large goes alone
