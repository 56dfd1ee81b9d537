"""Views: drawn as torchvision draws them, the same whatever the loader and the kind."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.transforms import functional as TF

from pretrain.config import AugmentConfig, PretrainConfig, check_config
from pretrain.crops import crop_box, pad_edges, resized, turn
from pretrain.draws import (
    COLUMNS,
    FACTORS,
    GRAY,
    ORDER,
    SIGMA,
    draw_views,
    generator,
    two_colours,
)
from pretrain.views import Views, finish
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD
from siambench.data.images import ImageList, decode, read_image_folder
from siambench.errors import UserError

OFFICIAL = AugmentConfig(crop=96)
MULTI_CROP = replace(OFFICIAL, small_views=2, small_crop=48, small_scale=(0.1, 0.3))
SMALLER = replace(OFFICIAL, crop=48, scale=(0.1, 0.3))  # the settings of its smaller views


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> ImageList:
    """Sixteen 250 x 188 cuts of scikit-learn's two photographs."""
    root = tmp_path_factory.mktemp("photographs")
    pictures = [Image.fromarray(x).resize((500, 375)) for x in load_sample_images().images]
    for i in range(16):
        left, top = 30 * (i // 2), 20 * (i // 2)
        pictures[i % 2].crop((left, top, left + 250, top + 188)).save(root / f"{i}.jpg", quality=90)
    return ImageList(root, [f"{i}.jpg" for i in range(16)], [i % 2 for i in range(16)], ["a", "b"])


def _draws(config, count=4000):
    return [draw_views(generator(0, 0, i), config, 1)[0] for i in range(count)]


def _quantiles(a):
    return np.quantile(a, [0.05, 0.25, 0.5, 0.75, 0.95])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (40, 300)])
def test_crop_boxes_are_distributed_as_torchvisions(width, height):
    torch.manual_seed(0)
    c = AugmentConfig()
    ours = np.array([crop_box(width, height, c.scale, c.ratio, d.boxes) for d in _draws(c)])
    image = torch.empty(3, height, width)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, c.scale, c.ratio) for _ in range(4000)]
    )[:, [1, 0, 3, 2]]
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    for column in range(4):
        np.testing.assert_allclose(
            _quantiles(ours[:, column]),
            _quantiles(theirs[:, column]),
            atol=0.03 * max(width, height),
        )


def test_colour_numbers_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    c = AugmentConfig()
    draws = _draws(c)
    colour = np.stack([d.colour for d in draws])
    assert colour.shape == (4000, COLUMNS)
    jittered = (colour[:, FACTORS] != (1, 1, 1, 0)).any(1)
    blurred = colour[:, SIGMA] > 0
    assert jittered.mean() == pytest.approx(0.8, abs=0.02)
    assert colour[:, GRAY].mean() == pytest.approx(0.2, abs=0.02)
    assert blurred.mean() == pytest.approx(0.5, abs=0.025)
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.5, abs=0.025)
    np.testing.assert_allclose(
        _quantiles(colour[blurred, SIGMA]),
        0.1 + 1.9 * np.array([0.05, 0.25, 0.5, 0.75, 0.95]),
        atol=0.06,
    )
    jitter = transforms.ColorJitter(*c.jitter)
    theirs = [
        transforms.ColorJitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        for _ in range(4000)
    ]
    for which in range(4):
        np.testing.assert_allclose(
            _quantiles(colour[jittered, which]),
            _quantiles([t[1 + which] for t in theirs]),
            atol=0.03 * 2 * c.jitter[which] + 0.002,
        )

    def orders(rows):
        code = np.asarray(rows) @ (64, 16, 4, 1)
        return np.bincount(code.astype(int), minlength=256) / len(code)

    ours = orders(colour[jittered][:, ORDER])
    assert (ours > 0).sum() == 24
    assert np.abs(ours - orders([t[0].tolist() for t in theirs])).max() < 0.02
    # coins fall independently: as many views have all three as the rates' product
    every = jittered & blurred & (colour[:, GRAY] > 0)
    assert every.mean() == pytest.approx(0.08, abs=0.015)


def test_the_two_colours_differ_in_brightness_and_the_second_is_the_lighter():
    rng = np.random.default_rng(0)
    pairs = np.stack([two_colours(rng.random((8, 2, 3))) for _ in range(2000)])
    excess = (pairs[:, 1] - pairs[:, 0]) @ (0.299, 0.587, 0.114)
    assert (excess >= 0).all()
    assert (excess >= 0.2).mean() > 0.98
    assert pairs.std(0).min() > 0.2  # the colours are everywhere
    close = np.full((8, 2, 3), 0.5)
    close[3, 0] = 0.6
    np.testing.assert_array_equal(two_colours(close), [[0.5] * 3, [0.6] * 3])


@pytest.mark.parametrize("size", [(300, 380), (224, 224), (64, 48), (500, 375), (7, 900), (1, 1)])
def test_resizing_is_pillows_within_one_level(size):
    photo = np.array(Image.fromarray(load_sample_images().images[0]).resize((500, 375)))
    pixels = (
        np.resize(photo, (size[1], size[0], 3)) if max(size) > 500 else photo[: size[1], : size[0]]
    )
    theirs = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR))
    difference = np.abs(resized(pixels, 224).astype(int) - theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


def _official_view(path, config, draw):
    """The official pipeline's steps (main_simsiam.py) by Pillow, with the numbers of ``draw``."""
    picture = decode(path)
    left, top, width, height = crop_box(*picture.size, config.scale, config.ratio, draw.boxes)
    picture = picture.crop((left, top, left + width, top + height))
    picture = picture.resize((config.crop, config.crop), Image.Resampling.BILINEAR)
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for step in draw.colour[ORDER].astype(int):
        picture = steps[step](picture, float(draw.colour[FACTORS][step]))
    if draw.colour[GRAY]:
        picture = TF.rgb_to_grayscale(picture, 3)
    if draw.colour[SIGMA]:
        picture = picture.filter(ImageFilter.GaussianBlur(float(draw.colour[SIGMA])))
    return np.asarray(TF.hflip(picture) if draw.flip else picture).astype(float)


def _levels(view):
    """A normalised view (3, H, W) as levels 0..255 (H, W, 3)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((view.permute(1, 2, 0) * std + mean) * 255).numpy()


def test_device_and_cpu_make_the_same_views_and_the_official_steps_nearly_the_same(photographs):
    made = {}
    for kind in ("device", "cpu"):
        views = Views(photographs, MULTI_CROP, kind, 2, 0)
        batch = default_collate([views[(1, i)] for i in range(16)])
        finished = finish(batch, MULTI_CROP, kind)
        sides = [(16, 3, side, side) for side in (96, 96, 48, 48)]
        assert [tuple(v.shape) for v in finished] == sides
        assert all(v.is_contiguous(memory_format=torch.channels_last) for v in finished)
        assert batch["label"].tolist() == photographs.labels
        made[kind] = finished
        views = Views(photographs, OFFICIAL, kind, 2, 0)  # the large ones are the same without
        batch = default_collate([views[(1, i)] for i in range(16)])
        for with_small, without in zip(finished[:2], finish(batch, OFFICIAL, kind), strict=True):
            assert torch.equal(with_small, without)
    for i in range(16):
        draws = draw_views(generator(0, 1, i), MULTI_CROP, 4)
        for v, settings in enumerate((OFFICIAL, OFFICIAL, SMALLER, SMALLER)):
            cpu, device = (_levels(made[kind][v][i]) for kind in ("cpu", "device"))
            assert np.abs(cpu - device).mean() < 0.7  # rounding to levels after each step
            assert np.abs(cpu - device).max() < 4
            official = _official_view(photographs.root / f"{i}.jpg", settings, draws[v])
            # Pillow cuts fractions off after each step, has 256 hues, and blurs by boxes
            assert np.abs(cpu - official).mean() < 4
            assert np.quantile(np.abs(cpu - official), 0.99) < 14


def test_pil_views_are_torchvisions_and_leave_the_generators_alone(photographs):
    class Blur:
        def __call__(self, x):
            return x.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    large, small = (
        transforms.RandomResizedCrop(96, scale=(0.2, 1.0)),
        transforms.RandomResizedCrop(48, scale=(0.1, 0.3)),
    )
    official = transforms.Compose(
        [
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([Blur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    views = Views(photographs, MULTI_CROP, "pil", 2, 0)
    for image in range(6):
        torch.manual_seed(5)
        random.seed(5)
        ours = finish(default_collate([views[(2, image)]]), MULTI_CROP, "pil")
        after = torch.rand(1), random.random()
        seed = int(generator(0, 2, image).integers(2**63))
        torch.manual_seed(seed)
        random.seed(seed)
        picture = Image.open(photographs.root / f"{image}.jpg").convert("RGB")
        for view, crop in zip(ours, (large, large, small, small), strict=True):
            torch.testing.assert_close(view[0], official(crop(picture)), atol=1e-5, rtol=0)
        torch.manual_seed(5)
        random.seed(5)
        assert after == (torch.rand(1), random.random())


@pytest.mark.parametrize("kind", ["device", "cpu", "pil"])
def test_views_depend_on_seed_epoch_and_image_alone(photographs, kind):
    config = MULTI_CROP if kind == "pil" else replace(MULTI_CROP, crop=24, rotate=10, pad=0.1)
    if kind == "device":
        config.recolour, config.noise = 0.5, 0.1
    one, two = (Views(photographs, config, kind, 2, 0) for _ in range(2))
    later = two[(3, 7)]
    one[(0, 0)], one[(3, 8)]
    random.seed(1), torch.manual_seed(1)
    again = one[(3, 7)]
    assert later.keys() == again.keys()
    assert all(torch.equal(later[name], again[name]) for name in later)
    assert later["pixels"].shape == (2, config.crop, config.crop, 3)
    assert later["pixels"].dtype == torch.uint8
    assert ("noise" in later) == (kind == "device")
    assert not torch.equal(later["pixels"][0], later["pixels"][1])
    assert later["small_pixels"].shape == (2, 48, 48, 3)
    assert not torch.equal(later["small_pixels"][0], later["small_pixels"][1])
    others = one[(4, 7)], Views(photographs, config, kind, 2, 1)[(3, 7)]
    assert not any(torch.equal(other["pixels"], later["pixels"]) for other in others)
    # not on the loader's processes
    keys = [(3, i) for i in (7, 2, 5, 0)]
    for loaded in DataLoader(one, 4, sampler=keys, num_workers=2):
        for name, expected in default_collate([one[key] for key in keys]).items():
            assert torch.equal(loaded[name], expected)
    # neither on the batch nor on the place in it
    batch = [one[(3, i)] for i in (2, 7, 5)]
    alone = finish(default_collate([again]), config, kind)
    among = finish(default_collate(batch), config, kind)
    for a, b in zip(alone, among, strict=True):
        torch.testing.assert_close(a[0], b[1], atol=1e-6, rtol=1e-5)


def test_the_devices_half_asks_the_device_for_nothing(photographs):
    """Tensors on "meta" have no values: whatever needs one raises."""
    everything = AugmentConfig(crop=24, recolour=1, recolour_power=2, tone=0.3, noise=0.1)
    for kind, config in (("device", everything), ("device", OFFICIAL), ("cpu", OFFICIAL)):
        views = Views(photographs, config, kind, 2, 0)
        batch = default_collate([views[(0, i)] for i in range(4)])
        made = finish({name: t.to("meta") for name, t in batch.items()}, config, kind)
        for view in made:
            assert view.shape == (4, 3, config.crop, config.crop)
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert view.dtype == torch.float32


def test_padding_repeats_the_edge_and_rotation_is_pillows(scenes):
    images = read_image_folder(scenes / "imagenet", "train")
    picture = decode(images.root / images.paths[0])
    pixels = np.asarray(picture)
    still = pad_edges(pixels, AugmentConfig(pad=0.25))
    np.testing.assert_array_equal(still[8:-8, 8:-8], pixels)
    np.testing.assert_array_equal(still[0, 8:-8], pixels[0])
    assert pad_edges(pixels, AugmentConfig()) is pixels

    padded = Image.fromarray(pad_edges(pixels, AugmentConfig(pad=0.25, rotate=10)))
    side = picture.width * 3 // 2
    margin = (padded.width - side) // 2
    for angle in (-10.0, 3.0, 10.0):
        ours = np.asarray(turn(padded, (side, side), angle)).astype(int)
        theirs = np.asarray(padded.rotate(angle, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(ours - theirs[margin:-margin, margin:-margin]).max() <= 1
    # Nothing from outside the padded picture comes in at any allowed angle.
    ground = np.broadcast_to(np.uint8([10, 200, 90]), (30, 40, 3))
    for config, size, angles in (
        (AugmentConfig(pad=0.1, rotate=10), (48, 36), (-10.0, 10.0)),
        (AugmentConfig(rotate=180), (40, 30), (45.0, 60.0, 90.0, -135.0, 180.0)),
    ):
        flat = Image.fromarray(pad_edges(ground, config))
        for angle in angles:
            corners = np.asarray(turn(flat, size, angle)).reshape(-1, 3)
            assert (corners == (10, 200, 90)).all(), angle


@pytest.mark.parametrize(
    ("views", "flag"),
    [("cpu", "recolour"), ("cpu", "tone"), ("cpu", "noise"), ("pil", "pad"), ("pil", "rotate")],
)
def test_what_a_pipeline_does_not_have_is_refused(views, flag):
    config = PretrainConfig(data="", views=views, augment=AugmentConfig(**{flag: 0.5}))
    with pytest.raises(UserError, match=f"--augment.{flag} is 0.5.*--views {views}"):
        check_config(config)
    check_config(PretrainConfig(data="", views=views))
    assert math.isclose(config.augment.scale[0], 0.2)
