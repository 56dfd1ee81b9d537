"""The protocol of an FCN fine-tuning; its defaults are those of the preset voc12aug-fcn-20k."""

from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal

from siambench.config import EvaluationConfig
from siambench.errors import UserError


@dataclass
class SegmentConfig(EvaluationConfig):
    """An FCN on a dilated ResNet, trained whole and tested by mIoU.

    Args:
        dataset: voc12aug (VOC 2012 and SBD's masks), voc12 (VOC's own 1,464 training images only),
            cityscapes (fine annotations, 19 classes) or folder (any images and masks).
        sbd: SBD's folder (benchmark_RELEASE, or its dataset folder), whose cls/*.mat are used where
            VOC2012 has no SegmentationClassAug.
        image_folder: of a folder: DATA/IMAGE_FOLDER/SPLIT/... are the images ...
        mask_folder: ... DATA/MASK_FOLDER/SPLIT/... the masks, of the same names; DATA/classes.txt
            names the values 0, 1, ... line by line.
        train_split: of a folder, what is trained on.
        val_split: of a folder, what is tested on.
        ignored_values: of a folder's masks, beside 255, e.g. [0] where 0 is unlabelled.
        output_stride: 8 (layer3 and layer4 keep stride 8 by dilations 2 and 4) or 16 (layer4, 2).
        contract_dilation: whether the convolution that lost its stride keeps the dilation of the
            layer before; if not it has its layer's, and reads other positions than in pre-training.
        head_channels: of each 3×3 convolution of the head on layer4.
        head_convs: 3×3 convolutions of that head.
        head_dilation: of these.
        head_concat: whether one more reads the head's input and output together.
        aux_channels: of the one 3×3 convolution of the auxiliary head on layer3.
        aux_weight: of the auxiliary head's loss; 0 for no auxiliary head.
        dropout: of whole channels, before each head's classifier.
        align_corners: whether corner pixels are aligned when logits are enlarged.
        long_edge: images are scaled to the largest size whose longer side is at most this ...
        short_edge: ... and whose shorter side is at most this; in training both times a random ratio.
            Both 0 for the images' own size.
        ratio_min: least of that ratio.
        ratio_max: greatest of it.
        crop: side of the training crop, and of the window of sliding inference.
        cat_max_ratio: a crop is drawn again, ten times at most, while one class fills this or more.
        flip: mirror half of the training crops; turn off where left and right differ (digits).
        distort: photometric distortion of the training crops.
        loss_over: what the loss is divided by: all pixels (ignored ones count as 0) or the labelled.
        batch_size: images per iteration, over all processes (batch norms see them all).
        iterations: training steps.
        lr: learning rate at the start, at this very batch size.
        head_lr_mult: the heads' learning rate is this many times the backbone's.
        momentum: of SGD.
        weight_decay: of every parameter, batch norms included.
        schedule: poly (the learning rate falls as (1 - iteration / iterations) to poly_power, to
            min_lr) or step (a tenth at each of steps).
        poly_power: of schedule poly.
        min_lr: of schedule poly.
        steps: of schedule step, as shares of the iterations.
        bf16: train in bfloat16 autocast; the test is always in float32.
        inference: whole image at once, or slide a window of side crop.
        slide_stride: step of the sliding window.
        test_scales: factors on the test images' size; the probabilities of all are averaged.
        test_flip: average them with the mirrored images' too.
        checkpoint_every: iterations between checkpoints.
    """

    dataset: Literal["voc12aug", "voc12", "cityscapes", "folder"] = "voc12aug"
    sbd: str = ""
    image_folder: str = "images"
    mask_folder: str = "masks"
    train_split: str = "train"
    val_split: str = "val"
    ignored_values: list[int] = field(default_factory=list)
    output_stride: Literal[8, 16] = 8
    contract_dilation: bool = True
    head_channels: int = 512
    head_convs: int = 2
    head_dilation: int = 1
    head_concat: bool = True
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
    loss_over: Literal["all", "labelled"] = "all"
    batch_size: int = 16
    iterations: int = 20_000
    lr: float = 0.01
    head_lr_mult: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["poly", "step"] = "poly"
    poly_power: float = 0.9
    min_lr: float = 1e-4
    steps: list[float] = field(default_factory=lambda: [0.7, 0.9])
    bf16: bool = False
    inference: Literal["whole", "slide"] = "whole"
    slide_stride: int = 341
    test_scales: list[float] = field(default_factory=lambda: [1.0])
    test_flip: bool = False
    checkpoint_every: int = 2000

    def idle(self) -> set[str]:
        """What the data set, the schedule and the way of testing leave unused."""
        of_folder = {"image_folder", "mask_folder", "train_split", "val_split", "ignored_values"}
        unused = set() if self.dataset == "folder" else of_folder
        unused |= {"steps"} if self.schedule == "poly" else {"poly_power", "min_lr"}
        if self.inference == "whole":
            unused.add("slide_stride")
        if not self.aux_weight:
            unused.add("aux_channels")
        return unused


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
        "head_dilation": (1, None),
        "long_edge": (config.short_edge, None),
        "short_edge": (8 if config.long_edge else 0, None),
        "ratio_min": (0.01, config.ratio_max),
        "ratio_max": (0.01, 100),
        "crop": (8, None),
        "cat_max_ratio": (0, 1),
        "batch_size": (2, None),  # batch norm
        "iterations": (1, None),
        "lr": (config.min_lr if config.schedule == "poly" else 0, None),
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
        if not least <= value <= (inf if most is None else most) or not isfinite(value):
            bound = f"at least {least}" if most is None else f"{least} to {most}"
            raise UserError(f"--{name} is {value}; it must be {bound}")
    if config.schedule == "step" and not (
        config.steps == sorted(set(config.steps)) and all(0 < step < 1 for step in config.steps)
    ):
        raise UserError(
            f"--steps is {config.steps}; they must be shares of the iterations, rising, between 0 and 1"
        )
    if not config.test_scales or not all(0 < scale <= 8 for scale in config.test_scales):
        raise UserError(
            f"--test_scales is {config.test_scales}; they must be factors above 0, at most 8"
        )
