"""Box arithmetic and masks, against torchvision's detection parts and brute force."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from eval_detection.masks import crop_mask, fill, paste
from eval_detection.torchvision_engine.boxes import (
    cell_anchors,
    clip,
    decode,
    encode,
    grid_anchors,
    match,
    sample,
    within,
)

WEIGHTS = (10.0, 5.0)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def boxes_of(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 80, (count, 2))
    return torch.from_numpy(np.hstack((corner, corner + rng.uniform(5, 60, (count, 2))))).float()


def test_anchors_have_their_area_ratio_and_place() -> None:
    cells = cell_anchors([32, 50], [0.5, 1.0, 2.0])
    width, height = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    torch.testing.assert_close(width * height, torch.tensor([32.0**2] * 3 + [50.0**2] * 3))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0] * 2))
    grid = grid_anchors(cells, 3, 4, 16).view(3, 4, 6, 4)
    torch.testing.assert_close(grid[2, 3, 5] - cells[5], torch.tensor([48.0, 32.0, 48.0, 32.0]))


def test_coding_is_torchvisions_and_undoes_itself() -> None:
    truth, references = boxes_of(40, 0), boxes_of(40, 1)
    deltas = encode(truth, references, WEIGHTS)
    torch.testing.assert_close(deltas, CODER.encode_single(truth, references))
    torch.testing.assert_close(decode(deltas, references, WEIGHTS), truth, atol=1e-3, rtol=1e-4)
    wild = torch.full((40, 4), 1e4)
    expected = CODER.decode_single(wild, references)
    torch.testing.assert_close(decode(wild, references, WEIGHTS), expected)
    assert decode(wild, references, WEIGHTS).isfinite().all()


def test_clip() -> None:
    box = torch.tensor([[-3.0, 2.0, 70.0, 90.0]])
    assert clip(box, 50, 60).tolist() == [[0.0, 2.0, 60.0, 50.0]]


@pytest.mark.parametrize(("low", "high", "keep_best"), [(0.3, 0.7, True), (0.5, 0.5, False)])
def test_matching_is_torchvisions(low: float, high: float, keep_best: bool) -> None:
    truth, boxes = boxes_of(6, 2), boxes_of(300, 3)
    index, label = match(truth, boxes, low, high, keep_best=keep_best)
    theirs = Matcher(high, low, allow_low_quality_matches=keep_best)(box_iou(truth, boxes))
    expected = torch.where(theirs >= 0, 1, torch.where(theirs == -2, -1, 0))
    assert torch.equal(label, expected)
    positive = theirs >= 0
    assert torch.equal(index[positive], theirs[positive])
    assert {0, 1} <= set(label.tolist())


def test_without_ground_truth_everything_is_background() -> None:
    index, label = match(torch.empty(0, 4), boxes_of(5, 0), 0.3, 0.7, keep_best=True)
    assert label.tolist() == [0] * 5
    assert index.tolist() == [0] * 5


def test_sampling_keeps_the_fraction_and_fills_up() -> None:
    label = torch.tensor([[1] * 10 + [0] * 50 + [-1] * 40, [1] + [-1] * 96 + [0] * 3])
    keys = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    for count, fraction, numbers in [
        (16, 0.25, [(4, 12), (1, 3)]),
        (100, 0.5, [(10, 50), (1, 3)]),
        (10**6, 0.5, [(10, 50), (1, 3)]),
        (2, 0.25, [(0, 2), (0, 2)]),
    ]:
        drawn = sample(label, keys, count, fraction)
        assert list(zip(drawn.positives.tolist(), drawn.negatives.tolist(), strict=True)) == numbers
        for kind, indices, counts in [
            (1, drawn.positive, drawn.positives),
            (0, drawn.negative, drawn.negatives),
        ]:
            inside = within(indices, counts)
            assert torch.equal(inside.sum(dim=1), counts)
            assert (label.gather(1, indices)[inside] == kind).all()
            for row, part in zip(indices, counts, strict=True):
                assert len(set(row[:part].tolist())) == part


def test_every_candidate_is_drawn_equally_often() -> None:
    """3 of 12 background boxes, 4000 times: each a quarter of the time, to 4 standard deviations."""
    label = torch.tensor([0] * 12 + [-1] * 4).expand(4000, -1)
    keys = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0))
    drawn = sample(label, keys, 3, 0.5).negative
    frequency = drawn.flatten().bincount(minlength=16) / 4000
    assert (frequency[:12] - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert not frequency[12:].any()


def test_polygon_cut_to_a_whole_pixel_box_is_the_mask_itself() -> None:
    polygon = np.array([3.0, 2, 17, 4, 12, 19, 5, 15])
    whole = fill([polygon], 24, 24)
    assert 100 < whole.sum() < 200
    cut = crop_mask([polygon], np.array([2.0, 1, 18, 17]), 16)
    np.testing.assert_array_equal(cut, whole[1:17, 2:18])
    np.testing.assert_array_equal(crop_mask(whole, np.array([2.0, 1, 18, 17]), 16), cut)


def test_pasting_looks_up_pixel_centres() -> None:
    """A mask over a box with one mask cell per pixel is copied; outside there is nothing."""
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    code = paste(mask, torch.tensor([[5.0, 3, 13, 11]]), 20, 30)[0]
    pasted = rle_tools.decode(code)
    assert pasted.shape == (20, 30)
    np.testing.assert_array_equal(pasted[3:11, 5:13], (mask[0] >= 0.5).numpy())
    pasted[3:11, 5:13] = 0
    assert not pasted.any()


def test_pasting_a_box_over_the_edge() -> None:
    code = paste(torch.ones(1, 4, 4), torch.tensor([[24.0, 14, 30, 20]]), 20, 30)[0]
    pasted = rle_tools.decode(code)
    assert pasted[15:, 25:].all()
    assert pasted[:13].sum() == 0
