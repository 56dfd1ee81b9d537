"""Colour and blur of views: each operation against Pillow's, torchvision's or the formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter1d
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2 import functional as TF

from pretrain import pixels
from pretrain.colour import (
    colour_views,
    gaussian_blur,
    jitter_batch,
    jitter_each,
    luma,
    shift_hue,
)
from pretrain.config import AugmentConfig
from pretrain.draws import (
    COLUMNS,
    FACTORS,
    GAMMA,
    GRAY,
    ORDER,
    RECOLOUR,
    SIGMA,
    SOLARIZE,
    draw_views,
    generator,
)
from pretrain.pil_views import PilViews

STEPS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def _images(n=4, side=24, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _plain(n):
    """Numbers that change nothing."""
    colour = torch.zeros(n, COLUMNS)
    colour[:, FACTORS] = torch.tensor([1.0, 1, 1, 0])
    colour[:, ORDER] = torch.arange(4.0)
    colour[:, GAMMA] = 1
    return colour


def _photo():
    return np.asarray(Image.fromarray(load_sample_images().images[1]).resize((96, 96)))


@pytest.mark.parametrize("jitter", [jitter_batch, jitter_each])
@pytest.mark.parametrize("which", range(4))
def test_each_operation_is_torchvisions(jitter, which):
    factors = torch.tensor([-0.1, -0.04, 0.05, 0.1] if which == 3 else [0.6, 0.9, 1.1, 1.4])
    colour = _plain(4)
    colour[:, which] = factors
    x = _images()
    ours = jitter(x, colour[:, FACTORS], colour[:, ORDER])
    for before, after, factor in zip(x, ours, factors, strict=True):
        torch.testing.assert_close(after, STEPS[which](before, float(factor)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("jitter", [jitter_batch, jitter_each])
def test_each_image_has_its_own_operations_in_its_own_order(jitter):
    c = AugmentConfig()
    colour = np.stack([draw_views(generator(0, 0, i), c, 1)[0].colour for i in range(64)])
    x = _images(64, 16)
    numbers = torch.from_numpy(colour)
    ours = jitter(x, numbers[:, FACTORS], numbers[:, ORDER])
    torch.testing.assert_close(x, _images(64, 16), atol=0, rtol=0)
    for before, after, row in zip(x, ours, colour, strict=True):
        for step in row[ORDER].astype(int):
            before = STEPS[step](before, float(row[FACTORS][step]))
        torch.testing.assert_close(after, before, atol=2e-3, rtol=0)


def test_grey_is_torchvisions_and_only_where_drawn():
    colour = _plain(4)
    colour[1, GRAY] = 1
    x = _images()
    ours = colour_views(x, colour, AugmentConfig(blur=0))
    torch.testing.assert_close(ours[1], TF.rgb_to_grayscale(x[1], 3), atol=2e-3, rtol=0)
    assert torch.equal(ours[[0, 2, 3]], x[[0, 2, 3]])


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.05, 0.3])
def test_hue_equals_torchvisions(shift):
    x = _images()
    ours = shift_hue(x, torch.full((4, 1, 1, 1), shift))
    torch.testing.assert_close(ours, TF.adjust_hue(x, shift), atol=1e-4, rtol=0)
    photo = _photo()
    theirs = TF.adjust_hue(torch.tensor(photo).permute(2, 0, 1) / 255, shift).permute(1, 2, 0)
    assert np.abs(pixels.hue(photo, shift) - theirs.numpy() * 255).max() < 0.51


def test_hue_of_grey_is_grey():
    grey = luma(_images()).expand(4, 3, 24, 24)
    torch.testing.assert_close(shift_hue(grey, torch.full((4, 1, 1, 1), 0.2)), grey)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pixels.brightness, ImageEnhance.Brightness),
        (pixels.contrast, ImageEnhance.Contrast),
        (pixels.saturation, ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.6, 0.93, 1.07, 1.4])
def test_each_operation_on_levels_is_pillows_within_one(ours, theirs, factor):
    photo = _photo()
    expected = np.asarray(theirs(Image.fromarray(photo)).enhance(factor)).astype(int)
    assert np.abs(ours(photo, factor) - expected).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
def test_blur_is_a_gaussian_and_close_to_pillows(sigma):
    photo = _photo()
    exact = photo.astype(float)
    for axis in (0, 1):
        exact = gaussian_filter1d(exact, sigma, axis=axis, mode="nearest", truncate=6)
    batch = torch.tensor(photo).permute(2, 0, 1)[None] / 255
    device = gaussian_blur(batch, torch.tensor([sigma]), 2.0)[0].permute(1, 2, 0).numpy() * 255
    cpu = pixels.blur(photo, sigma)
    official = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
    assert np.abs(device - exact).max() < 0.5  # what the cut tails hold
    assert np.abs(cpu - exact).max() < 1.3  # and rounding
    assert np.abs(cpu - exact).mean() < 0.3
    # Pillow's three box filters are not quite a Gaussian, ours are nearer to one
    assert np.abs(official - exact).mean() < 0.8
    assert np.abs(cpu - official.astype(int)).mean() < 0.8


def test_blur_by_nothing_changes_nothing():
    x = _images()
    sigma = torch.tensor([0.0, 1.0, 0.0, 2.0])
    y = gaussian_blur(x, sigma, 2.0)
    torch.testing.assert_close(y[[0, 2]], x[[0, 2]])
    assert ((y - x)[[1, 3]].abs().amax((1, 2, 3)) > 0.05).all()


def test_recolouring_takes_colours_and_contrast_away():
    config = AugmentConfig(jitter_p=0, gray=0, blur=0, recolour=1)
    ink = _images(1)[:, :1]
    dark_red, pale_blue = torch.tensor([0.5, 0, 0]), torch.tensor([0.7, 0.8, 1])
    colours = [(dark_red, pale_blue), (torch.tensor([0.4] * 3), torch.tensor([0.6] * 3))]
    made = torch.cat(
        [(a.view(1, 3, 1, 1) * (1 - ink) + b.view(1, 3, 1, 1) * ink) for a, b in colours]
    )

    def numbers(settings, count):
        draws = [draw_views(generator(5, 0, i), settings, 1)[0].colour for i in range(count)]
        return torch.from_numpy(np.stack(draws))

    views = colour_views(made, numbers(config, 1).expand(2, -1), config)
    torch.testing.assert_close(views[0], views[1], atol=0.03, rtol=0)

    def recoloured(power):
        settings = AugmentConfig(jitter_p=0, gray=0, blur=0, recolour=1, recolour_power=power)
        many = made[:1].expand(2000, -1, -1, -1)
        return colour_views(many, numbers(settings, 2000), settings)

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


def test_recolouring_with_tone_and_noise_is_the_formula():
    config = AugmentConfig(jitter_p=0, gray=0, blur=0, recolour=0.5, tone=0.3, noise=0.05)
    draws = np.stack([draw_views(generator(0, 0, i), config, 1)[0].colour for i in range(200)])
    x = _images(200, 8)
    noise = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = colour_views(x, torch.from_numpy(draws), config, noise).numpy()
    hit = draws[:, RECOLOUR] > 0
    assert hit.mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(ours[~hit], x.numpy()[~hit])
    assert np.abs(np.log(draws[hit, GAMMA])).max() == pytest.approx(0.3, abs=0.02)
    strengths = draws[hit, 12]
    assert strengths.max() == pytest.approx(0.05, abs=0.003)
    assert strengths.mean() == pytest.approx(0.025, abs=0.004)
    for i in np.flatnonzero(hit):
        grey = np.tensordot((0.299, 0.587, 0.114), x[i].numpy(), 1)
        ink = ((grey - grey.min()) / (grey.max() - grey.min())) ** draws[i, GAMMA]
        ink = ink + draws[i, 12] * noise[i, 0].numpy()
        dark, light = draws[i, 13:16], draws[i, 16:19]
        expected = np.clip(dark[:, None, None] + (light - dark)[:, None, None] * ink, 0, 1)
        np.testing.assert_allclose(ours[i], expected, atol=1e-4)


def test_the_second_view_has_its_own_blur_and_solarisation(tmp_path):
    """BYOL's and Barlow Twins' pair of views; solarisation is torchvision's, in all three pipelines."""
    plain = {"jitter_p": 0, "gray": 0, "flip": 0, "scale": (1, 1), "ratio": (1, 1), "crop": 16}
    config = AugmentConfig(**plain, blur=1, blur_second=0, solarize=0, solarize_second=1)
    first, second = draw_views(generator(0, 0, 0), config, 2)
    assert first.colour[SIGMA] > 0
    assert second.colour[SIGMA] == 0
    assert [d.colour[SOLARIZE] for d in (first, second)] == [0, 1]
    without = draw_views(generator(0, 0, 0), replace(config, solarize_second=None), 2)
    for mine, other in zip(
        (first, second), without, strict=True
    ):  # nothing else is drawn otherwise
        np.testing.assert_array_equal(mine.colour[:SOLARIZE], other.colour[:SOLARIZE])
        np.testing.assert_array_equal(mine.boxes, other.boxes)

    levels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    expected = TF.solarize(torch.from_numpy(levels).permute(2, 0, 1), 128)
    expected = expected.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels.colour_pixels(levels, second.colour), expected)
    x = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255
    found = colour_views(x, torch.from_numpy(second.colour)[None], config)
    np.testing.assert_allclose(255 * found[0].permute(1, 2, 0).numpy(), expected, atol=1e-3)
    Image.fromarray(levels).save(tmp_path / "x.png")
    made, _ = PilViews(config)(tmp_path / "x.png", 2, 0, generator(0, 0, 0))
    np.testing.assert_array_equal(made[1].numpy(), expected)
    assert not np.array_equal(made[0].numpy(), levels)
    share = [
        [
            d.colour[SOLARIZE]
            for d in draw_views(generator(0, 0, i), replace(config, solarize=0.3), 2)
        ]
        for i in range(2000)
    ]
    np.testing.assert_allclose(np.mean(share, 0), [0.3, 1], atol=0.04)
