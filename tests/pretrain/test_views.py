"""Views: the same distribution as torchvision's transforms, and the same views after a restart."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from pretrain.colour import BatchAugment, gaussian_blur, luma, shift_hue
from pretrain.config import AugmentConfig
from pretrain.crops import Crops, crop_box, pad_edges, turn
from pretrain.order import EpochOrder
from siambench.data.images import read_image_folder


def _quantiles(a):
    return np.quantile(a, [0.05, 0.25, 0.5, 0.75, 0.95])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (40, 300)])
def test_crop_boxes_are_distributed_as_torchvisions(width, height):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    scale, ratio, n = (0.2, 1.0), (3 / 4, 4 / 3), 4000
    ours = np.array([crop_box(width, height, scale, ratio, rng) for _ in range(n)])
    transform = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width)
    theirs = [transform.make_params([image]) for _ in range(n)]
    theirs = np.array([[t["left"], t["top"], t["width"], t["height"]] for t in theirs])
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    for column in range(4):
        np.testing.assert_allclose(
            _quantiles(ours[:, column]),
            _quantiles(theirs[:, column]),
            atol=0.03 * max(width, height),
        )


def _images(n=4, side=24, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.05, 0.3])
def test_hue_equals_torchvisions(shift):
    x = _images()
    ours = shift_hue(x, torch.full((4, 1, 1, 1), shift))
    torch.testing.assert_close(ours, TF.adjust_hue(x, shift), atol=1e-4, rtol=0)


def test_hue_of_grey_is_grey():
    grey = luma(_images()).expand(4, 3, 24, 24)
    torch.testing.assert_close(shift_hue(grey, torch.full((4, 1, 1, 1), 0.2)), grey)


@pytest.mark.parametrize(
    ("which", "theirs"),
    [(0, TF.adjust_brightness), (1, TF.adjust_contrast), (2, TF.adjust_saturation)],
)
def test_one_colour_operation_is_torchvisions_with_a_factor_in_range(which, theirs):
    strengths = [0.0, 0.0, 0.0, 0.0]
    strengths[which] = 0.4
    config = AugmentConfig(jitter=tuple(strengths), jitter_p=1, gray=0, blur=0)
    x = (_images(64) * 255).to(torch.uint8)
    y = BatchAugment(config)(x, torch.Generator().manual_seed(0))
    grid = torch.linspace(0.6, 1.4, 801)
    factors = []
    for before, after in zip(x.float() / 255, y, strict=True):
        errors = torch.stack([(theirs(before, float(f)) - after).abs().max() for f in grid[::8]])
        around = grid[(errors.argmin() * 8 - 8).clamp(0) : errors.argmin() * 8 + 9]
        errors = torch.stack([(theirs(before, float(f)) - after).abs().max() for f in around])
        assert errors.min() < 2e-3
        factors.append(float(around[errors.argmin()]))
    assert np.mean(factors) == pytest.approx(1.0, abs=0.1)
    assert np.std(factors) == pytest.approx(0.8 / math.sqrt(12), abs=0.06)


def test_rates_of_flip_grey_jitter_and_blur(scenes):
    x = (_images(3000, 8) * 255).to(torch.uint8)
    generator = torch.Generator().manual_seed(0)

    def rate(config):
        y = BatchAugment(config)(x, generator)
        return float(((y - x / 255).abs().amax((1, 2, 3)) > 1e-3).float().mean())

    assert rate(AugmentConfig(jitter_p=0.8, gray=0, blur=0)) == pytest.approx(0.8, abs=0.03)
    assert rate(AugmentConfig(jitter_p=0, gray=0.2, blur=0)) == pytest.approx(0.2, abs=0.03)
    assert rate(AugmentConfig(jitter_p=0, gray=0, blur=0.5, sigma=(0.5, 0.6))) == pytest.approx(
        0.5, abs=0.03
    )
    images = read_image_folder(scenes / "imagenet", "train")
    still = AugmentConfig(crop=32, scale=(1, 1), ratio=(1, 1), flip=0.5)
    pairs = np.stack(
        [Crops(images, still, 2, 0)[(e, i)][0].numpy() for e in range(4) for i in range(100)]
    )
    one_flipped = (pairs[:, 0] == pairs[:, 1, :, :, ::-1]).all((1, 2, 3))
    assert one_flipped.mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_torchvisions(sigma):
    x = _images(2)
    ours = gaussian_blur(x, 1.0, (sigma, sigma), torch.Generator())
    taps = 2 * round(3 * sigma) + 1
    torch.testing.assert_close(
        ours, TF.gaussian_blur(x, [max(3, taps)] * 2, [sigma] * 2), atol=2e-3, rtol=0
    )


def test_recolouring_takes_colours_and_contrast_away():
    config = AugmentConfig(jitter_p=0, gray=0, blur=0, recolour=1)
    ink = _images(1)[:, :1]
    dark_red, pale_blue = torch.tensor([0.5, 0, 0]), torch.tensor([0.7, 0.8, 1])
    colours = [(dark_red, pale_blue), (torch.tensor([0.4] * 3), torch.tensor([0.6] * 3))]
    made = [(a.view(1, 3, 1, 1) * (1 - ink) + b.view(1, 3, 1, 1) * ink) for a, b in colours]
    views = [
        BatchAugment(config)((x * 255).round().to(torch.uint8), torch.Generator().manual_seed(5))
        for x in made
    ]
    torch.testing.assert_close(views[0], views[1], atol=0.03, rtol=0)

    def recoloured(power):
        settings = AugmentConfig(jitter_p=0, gray=0, blur=0, recolour=1, recolour_power=power)
        many = (made[0] * 255).to(torch.uint8).expand(2000, -1, -1, -1)
        return BatchAugment(settings)(many, torch.Generator().manual_seed(5))

    order = ink.flatten().argsort()
    darkest, lightest = (recoloured(0).flatten(2)[:, :, i] for i in (order[0], order[-1]))
    excess = luma(lightest[:, :, None, None]) - luma(darkest[:, :, None, None])
    assert (excess > 0.15).float().mean() > 0.99  # what is light stays light
    assert darkest.std(0).min() > 0.2  # and the colours are everywhere
    assert lightest.std(0).min() > 0.2
    # With power 2 the weight of the random ramp is u², 1/3 in the mean and 1/5 in the mean square.
    mixed = recoloured(2).flatten(2)[:, :, order[0]]
    assert mixed.std(0).max() < 0.75 * darkest.std(0).min()
    expected = 0.2 + (darkest.mean(0) - 0.2) / 3
    torch.testing.assert_close(mixed.mean(0), expected, atol=0.03, rtol=0)


def test_padding_repeats_the_edge_and_rotation_is_pillows(scenes):
    picture = Image.open(next((scenes / "imagenet/train/two").iterdir()))
    still = np.asarray(pad_edges(picture, AugmentConfig(pad=0.25)))
    np.testing.assert_array_equal(still[8:-8, 8:-8], np.asarray(picture))
    np.testing.assert_array_equal(still[0, 8:-8], np.asarray(picture)[0])
    assert pad_edges(picture, AugmentConfig()) is picture

    padded = pad_edges(picture, AugmentConfig(pad=0.25, rotate=10))
    side = picture.width * 3 // 2
    margin = (padded.width - side) // 2
    for angle in (-10.0, 3.0, 10.0):
        ours = np.asarray(turn(padded, (side, side), angle)).astype(int)
        theirs = np.asarray(padded.rotate(angle, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(ours - theirs[margin:-margin, margin:-margin]).max() <= 1
    # Nothing from outside the padded picture comes in at any allowed angle.
    flat = pad_edges(Image.new("RGB", (40, 30), (10, 200, 90)), AugmentConfig(pad=0.1, rotate=10))
    for angle in (-10.0, 10.0):
        corners = np.asarray(turn(flat, (48, 36), angle)).reshape(-1, 3)
        assert (corners == (10, 200, 90)).all()
    flat = pad_edges(Image.new("RGB", (40, 30), (10, 200, 90)), AugmentConfig(rotate=180))
    for angle in (45.0, 60.0, 90.0, -135.0, 180.0):
        corners = np.asarray(turn(flat, (40, 30), angle)).reshape(-1, 3)
        assert (corners == (10, 200, 90)).all(), angle


def test_views_depend_on_seed_epoch_and_image_alone(scenes):
    images = read_image_folder(scenes / "imagenet", "train")
    config = AugmentConfig(crop=24, rotate=10, pad=0.1)
    one, two = Crops(images, config, 2, 0), Crops(images, config, 2, 0)
    later = two[(3, 7)][0]
    one[(0, 0)], one[(3, 8)]
    assert torch.equal(one[(3, 7)][0], later)
    assert later.shape == (2, 3, 24, 24)
    assert not torch.equal(later[0], later[1])
    assert not torch.equal(one[(4, 7)][0], later)
    assert not torch.equal(Crops(images, config, 2, 1)[(3, 7)][0], later)
    order = EpochOrder(10, 0)
    order.set_epoch(2)
    first = list(order)
    assert sorted(i for _, i in first) == list(range(10))
    assert first == list(order)
    order.set_epoch(3)
    assert [i for _, i in order] != [i for _, i in first]
