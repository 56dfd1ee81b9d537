"""Agreement with numbers that the real mmsegmentation computed (make_golden.py), without it."""

import json
import re
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden_cases import (
    ARCH,
    CASES,
    CLASSES,
    CROPS,
    DISTORTIONS,
    EDGES,
    MIN_LR,
    PATH,
    POWER,
    RATIOS,
    RESIZED,
    SGD,
    SIZES,
    STEPS,
    Script,
    batch,
    fingerprint,
    labels,
    normalised,
    picture,
    weights,
)
from safetensors import safe_open
from torch import Tensor
from two_processes import ALONE

from eval_segmentation import VERBS
from eval_segmentation.augment import choose_crop, distort, resize_image, scaled_size
from eval_segmentation.config import SegmentConfig
from eval_segmentation.loss import losses
from eval_segmentation.metrics import confusion, metrics_of
from eval_segmentation.model import FCN, enlarge
from eval_segmentation.predict import labels_of, logits_of
from eval_segmentation.train import learning_rate
from siambench.checkpoints.source import load_backbone
from siambench.config import make_config

NAMES = (  # ours and mmsegmentation's
    (r"^resnet\.", "backbone."),
    (r"^head\.", "decode_head."),
    (r"^aux\.", "auxiliary_head."),
    (r"convs\.(\d+)\.0\.", r"convs.\1.conv."),
    (r"convs\.(\d+)\.1\.", r"convs.\1.bn."),
    (r"head\.cat\.0\.", "head.conv_cat.conv."),
    (r"head\.cat\.1\.", "head.conv_cat.bn."),
    (r"classifier\.", "conv_seg."),
)


def theirs(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def golden(prefix: str = "") -> dict[str, Tensor]:
    with safe_open(PATH, "pt") as file:
        mine = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in mine}


def told(what: str) -> dict[str, Any]:
    with safe_open(PATH, "pt") as file:
        return json.loads(file.metadata()[what])


def config_of(case: str) -> SegmentConfig:
    return SegmentConfig(
        backbone="",
        data="",
        long_edge=EDGES[0],
        short_edge=EDGES[1],
        iterations=STEPS - 1,  # mmengine's schedule ends one step earlier (train.learning_rate)
        poly_power=POWER,
        min_lr=MIN_LR,
        **SGD,
        **CASES[case],
    )


def model_of(case: str) -> FCN:
    """Ours, with the weights that mmsegmentation's network had."""
    model = FCN(load_backbone(f"random:{ARCH}"), CLASSES, config_of(case))
    state = model.state_dict()
    names = {name: theirs(name) for name in state if not name.startswith("resnet.fc.")}
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in state.items() if name in names}
    assert {name: list(shape) for name, shape in shapes.items()} == told("names")[case]
    values = weights(shapes)
    model.load_state_dict({name: values[names[name]] for name in names}, strict=False)
    return model


@pytest.mark.parametrize("case", CASES)
def test_training(case: str) -> None:
    """Losses, gradients of every parameter, and weights and statistics after the whole schedule."""
    config, model, expected = config_of(case), model_of(case).train(), golden(f"{case}.")
    images, target = batch()
    optimizer = torch.optim.SGD(model.parameters(), **SGD, fused=True)
    before = {n: t.clone() for n, t in model.state_dict().items() if t.is_floating_point()}
    for step in range(STEPS):
        rate = learning_rate(config, step)
        assert rate == pytest.approx(float(expected["rates"][step]), rel=1e-6)
        optimizer.param_groups[0]["lr"] = rate
        found = torch.stack(list(losses(*model(images), target, config, ALONE).values()))
        torch.testing.assert_close(found, expected["losses"][step], atol=1e-5, rtol=1e-4)
        optimizer.zero_grad()
        found.sum().backward()
        if step == 0:
            gradients = {theirs(n): p.grad for n, p in model.named_parameters()}
            torch.testing.assert_close(
                fingerprint(gradients), expected["gradients"], atol=2e-5, rtol=1e-3
            )
        optimizer.step()
    state = model.state_dict()
    changes = {theirs(name): state[name] - old for name, old in before.items()}
    torch.testing.assert_close(fingerprint(changes), expected["changes"], atol=1e-4, rtol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_testing(case: str) -> None:
    """Logits of the network and of the picture, its labels, and those of flips and scales."""
    config, model, expected = config_of(case), model_of(case).eval(), golden(f"{case}.")
    pixels = picture(44, 30)

    def scaled(ratio: float) -> Tensor:
        return normalised(resize_image(pixels, scaled_size((44, 30), *EDGES, ratio)))

    torch.testing.assert_close(model(scaled(1.0))[0], expected["strided"], atol=1e-5, rtol=1e-4)
    logits = enlarge(logits_of(model, scaled(1.0), config), (30, 44), config.align_corners)
    torch.testing.assert_close(logits[0], expected["logits"], atol=1e-5, rtol=1e-4)
    found = labels_of(model, [scaled(1.0)], (30, 44), config)
    assert torch.equal(found[0].to(torch.uint8), expected["labels"])
    several = replace(config, test_flip=True)
    found = labels_of(model, [scaled(ratio) for ratio in (0.75, 1.0, 1.5)], (30, 44), several)
    assert torch.equal(found[0].to(torch.uint8), expected["merged"][0])


def test_pictures_and_masks_to_the_bit() -> None:
    expected = golden()
    sizes = [scaled_size(size, 2048, 512, ratio) for size in SIZES for ratio in RATIOS]
    assert sizes == [tuple(size) for size in expected["sizes"].tolist()]
    pixels, mask = picture(44, 30), labels(44, 30)
    for number, size in enumerate(RESIZED):
        np.testing.assert_array_equal(resize_image(pixels, size), expected[f"resized{number}"])
        small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(small, expected[f"mask{number}"])


@pytest.mark.parametrize("number", range(len(DISTORTIONS)))
def test_distortion_to_the_bit(number: int) -> None:
    script = Script(DISTORTIONS[number])
    found = distort(picture(44, 30), script)
    assert not script.values
    np.testing.assert_array_equal(found, golden()[f"distorted{number}"])


@pytest.mark.parametrize("number", range(len(CROPS)))
def test_windows(number: int) -> None:
    crop, ratio, draws = CROPS[number]
    script = Script(list(draws))
    y, x = choose_crop(labels(60, 44), crop, ratio, script)
    assert [y, x, len(script.values)] == golden()["windows"][number].tolist()


def test_numbers_of_the_table() -> None:
    """Of a class that is in neither truth nor prediction there is none."""
    truth, guess = labels(60, 44, 5), labels(60, 44, 6)
    truth[truth == 3] = 0
    guess[(guess == 255) | (guess == 3)] = 0
    matrix = confusion(torch.from_numpy(truth), torch.from_numpy(guess), CLASSES)
    metrics = metrics_of(matrix, list("01234"), "val")
    expected = golden()
    for name, value in zip(("mIoU", "pixel_acc", "mean_acc"), expected["summary"], strict=True):
        (mine,) = (m.value for m in metrics if m.name == name)
        assert mine == pytest.approx(float(value), abs=0.005 + 1e-6)  # it rounds to two decimals
    mine = {m.params["class"]: m.value for m in metrics if m.name == "IoU"}
    for label, value in enumerate(expected["IoU"].tolist()):
        assert mine.get(str(label), np.nan) == pytest.approx(value, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("preset", ["voc12aug-fcn-20k", "cityscapes-fcn-40k"])
def test_presets_have_mmsegmentations_numbers(preset: str) -> None:
    config = make_config(VERBS["segment"], {"backbone": "b", "data": "d", "preset": preset})
    numbers = told("presets")[preset]
    assert len(numbers) > 20
    assert {name: getattr(config, name) for name in numbers} == numbers
