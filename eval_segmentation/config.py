"""The protocol of an FCN fine-tuning; its defaults are those of the preset voc12aug-fcn-20k."""

from dataclasses import dataclass
from typing import Literal

from siambench.config import EvaluationConfig
from siambench.errors import UserError


@dataclass
class SegmentConfig(EvaluationConfig):
    """An FCN on a ResNet dilated to stride 8, trained whole and tested by mIoU.

    Args:
        dataset: voc12aug (VOC 2012 and SBD's masks), voc12 (VOC's own 1,464 training images only)
            or cityscapes (fine annotations, 19 classes).
        head_channels: of each 3×3 convolution of the head on layer4.
        head_convs: 3×3 convolutions of that head, before the one over its input and output together.
        aux_channels: of the one 3×3 convolution of the auxiliary head on layer3.
        aux_weight: of the auxiliary head's loss; 0 for no auxiliary head.
        dropout: of whole channels, before each head's classifier.
        align_corners: whether corner pixels are aligned when logits are enlarged.
        long_edge: images are scaled to the largest size whose longer side is at most this ...
        short_edge: ... and whose shorter side is at most this; in training both times a random ratio.
        ratio_min: least of that ratio.
        ratio_max: greatest of it.
        crop: side of the training crop, and of the window of sliding inference.
        cat_max_ratio: a crop is drawn again, ten times at most, while one class fills this or more.
        flip: mirror half of the training crops; turn off where left and right differ (digits).
        distort: photometric distortion of the training crops.
        batch_size: images per iteration, all in this process (its batch norms see them all).
        iterations: training steps.
        lr: learning rate at the start, at this very batch size.
        head_lr_mult: the heads' learning rate is this many times the backbone's.
        momentum: of SGD.
        weight_decay: of every parameter, batch norms included.
        poly_power: the learning rate falls as (1 - iteration / iterations) to this power.
        min_lr: to this.
        bf16: train in bfloat16 autocast; the test is always in float32.
        inference: whole image at once, or slide a window of side crop.
        slide_stride: step of the sliding window.
        checkpoint_every: iterations between checkpoints.
    """

    dataset: Literal["voc12aug", "voc12", "cityscapes"] = "voc12aug"
    head_channels: int = 512
    head_convs: int = 2
    aux_channels: int = 256
    aux_weight: float = 0.4
    dropout: float = 0.1
    align_corners: bool = False
    long_edge: int = 2048
    short_edge: int = 512
    ratio_min: float = 0.5
    ratio_max: float = 2.0
    crop: int = 512
    cat_max_ratio: float = 0.75
    flip: bool = True
    distort: bool = True
    batch_size: int = 16
    iterations: int = 20_000
    lr: float = 0.01
    head_lr_mult: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    poly_power: float = 0.9
    min_lr: float = 1e-4
    bf16: bool = False
    inference: Literal["whole", "slide"] = "whole"
    slide_stride: int = 341
    checkpoint_every: int = 2000


def check_config(config: SegmentConfig) -> None:
    """Refuse numbers that cannot be meant, and a preset's name on another data set.

    Raises:
        UserError: names the first field that is wrong.
    """
    if config.preset and not config.preset.startswith(f"{config.dataset}-"):
        raise UserError(
            f"preset {config.preset} is not for --dataset {config.dataset}: its records would carry "
            "the wrong name; leave --preset out (the defaults are those of voc12aug-fcn-20k)"
        )
    ranges = {
        "head_channels": (1, None),
        "head_convs": (1, None),
        "aux_channels": (1, None),
        "aux_weight": (0, None),
        "dropout": (0, 0.99),
        "long_edge": (config.short_edge, None),
        "short_edge": (8, None),
        "ratio_min": (0.01, config.ratio_max),
        "crop": (8, None),
        "cat_max_ratio": (0, 1),
        "batch_size": (2, None),  # batch norm
        "iterations": (1, None),
        "lr": (config.min_lr, None),
        "head_lr_mult": (0, None),
        "momentum": (0, 1),
        "weight_decay": (0, None),
        "poly_power": (0, None),
        "min_lr": (0, None),
        "slide_stride": (1, config.crop if config.inference == "slide" else None),
        "checkpoint_every": (1, None),
    }
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value < least or (most is not None and value > most):
            bound = f"at least {least}" if most is None else f"{least} to {most}"
            raise UserError(f"--{name} is {value}; it must be {bound}")
