"""What the detection protocol is made of; each default is that of voc0712-frcnn-c4-24k."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from siambench.config import EvaluationConfig
from siambench.errors import UserError

VERSION = 2  # raised when a change of code changes results


@dataclass(frozen=True)
class Schedule:
    """The learning rate and its course at the batch size that is run.

    Attributes:
        lr: after the warm-up.
        max_iter: iterations.
        steps: iterations at which the rate is divided by 10.
        warmup_iters: iterations over which it rises linearly from a thousandth.
    """

    lr: float
    max_iter: int
    steps: tuple[int, ...]
    warmup_iters: int


@dataclass
class DetectConfig(EvaluationConfig):
    """Fine-tuning Faster or Mask R-CNN from a backbone.

    Args:
        engine: the library that does the work; by default detectron2 where it is installed, else
            torchvision.
        network: c4 (proposals from layer3, layer4 as the head of every RoI) or fpn (feature pyramid
            on layer1 to layer4, two fully connected layers a RoI).
        format: layout of the data, voc (VOCdevkit) or coco.
        train_sets: voc: YEAR/SPLIT, e.g. 2007/trainval; coco: the name of the image folder, e.g.
            train2017 (annotations in annotations/instances_train2017.json).
        test_set: likewise.
        mask: Mask R-CNN rather than Faster R-CNN; coco only.
        batch_size: images per iteration, over all processes.
        reference_batch: the batch that lr, max_iter, steps and warmup_iters are for; with another
            batch_size lr is multiplied, and the three are divided, by their ratio.
        lr: learning rate; of a list, each is tried on a held-out part of the training set, and the
            best by AP trains on all of it.
        holdout: fraction of the training images that the choice among several rates is made on.
        momentum: of SGD.
        weight_decay: of all weights and biases but those of batch norms.
        max_iter: training iterations.
        steps: iterations at which the learning rate is divided by 10.
        warmup_iters: iterations over which it rises linearly from a thousandth.
        freeze_at: the backbone's first so many stages keep their weights and batch norm statistics:
            1 is the stem, 2 to 5 add layer1 to layer4 (C4's layer4 is part of the head: always
            trained); 0 trains all.
        min_size_train: sizes of the shorter side in px, one drawn per image.
        max_size_train: largest longer side in px.
        min_size_test: shorter side in px at test.
        max_size_test: largest longer side in px at test.
        flip: mirror half of the training images.
        anchor_sizes: square roots of the anchors' areas in px.
        anchor_ratios: height over width.
        rpn_batch_per_image: anchors sampled per image, at most half of them positive.
        rpn_pre_nms_train: proposals kept before non-maximum suppression, per level.
        rpn_post_nms_train: and after.
        rpn_pre_nms_test: the same at test.
        rpn_post_nms_test: the same at test.
        rois_per_image: proposals sampled per image, at most a quarter of them positive.
        pooler_resolution: RoIAlign's output is this many cells square (masks in an FPN: 14).
        extra_norm: c4: a batch norm after the last residual stage; fpn: one after every convolution
            of the pyramid.
        precise_bn_iters: batches over which batch norm statistics are averaged before the test; 0
            keeps the running ones.
        score_threshold: detections below it are dropped.
        nms_threshold: IoU of non-maximum suppression per class.
        detections_per_image: detections kept per image.
        bf16: train in bfloat16 autocast; the test is always in float32.
        checkpoint_every: iterations between checkpoints.
    """

    engine: Literal["detectron2", "torchvision"] | None = None
    network: Literal["c4", "fpn"] = "c4"
    format: Literal["voc", "coco"] = "voc"
    train_sets: list[str] = field(default_factory=lambda: ["2007/trainval", "2012/trainval"])
    test_set: str = "2007/test"
    mask: bool = False
    batch_size: int = 16
    reference_batch: int = 16
    lr: float | list[float] = 0.02
    holdout: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    max_iter: int = 24_000
    steps: list[int] = field(default_factory=lambda: [18_000, 22_000])
    warmup_iters: int = 100
    freeze_at: int = 0
    min_size_train: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    max_size_train: int = 1333
    min_size_test: int = 800
    max_size_test: int = 1333
    flip: bool = True
    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    anchor_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    rpn_batch_per_image: int = 256
    rpn_pre_nms_train: int = 12_000
    rpn_post_nms_train: int = 2000
    rpn_pre_nms_test: int = 6000
    rpn_post_nms_test: int = 1000
    rois_per_image: int = 512
    pooler_resolution: int = 14
    extra_norm: bool = True
    precise_bn_iters: int = 200
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    bf16: bool = False
    checkpoint_every: int = 500

    @property
    def rates(self) -> list[float]:
        """The learning rates to choose from, at ``reference_batch``."""
        return self.lr if isinstance(self.lr, list) else [self.lr]

    def idle(self) -> set[str]:
        """The held-out part of a search with nothing to choose from."""
        return {"holdout"} if len(self.rates) == 1 else set()

    def at_rate(self, lr: float) -> "DetectConfig":
        """The same with one learning rate."""
        return replace(self, lr=lr)

    def schedule(self) -> Schedule:
        """The schedule at ``batch_size``: linear scaling (Goyal et al. 2017, section 2.1).

        Raises:
            ValueError: there are several rates.
        """
        (lr,) = self.rates
        factor = self.batch_size / self.reference_batch

        def scaled(iterations: int) -> int:
            return round(iterations / factor)

        return Schedule(
            lr=lr * factor,
            max_iter=max(scaled(self.max_iter), 1),
            steps=tuple(sorted({scaled(step) for step in self.steps} - {0})),
            warmup_iters=scaled(self.warmup_iters),
        )


_COUNTS = (
    *(
        "batch_size",
        "reference_batch",
        "max_iter",
        "checkpoint_every",
        "max_size_train",
        "min_size_test",
    ),
    *("max_size_test", "rpn_batch_per_image", "rpn_pre_nms_train", "rpn_post_nms_train"),
    *("rpn_pre_nms_test", "rpn_post_nms_test", "rois_per_image", "pooler_resolution"),
    "detections_per_image",
)


def check_config(config: DetectConfig) -> None:
    """Refuse numbers that cannot be meant, and a preset's name on data of the other format.

    Raises:
        UserError: names the first field that is wrong.
    """
    if config.preset and not config.preset.startswith(config.format):
        raise UserError(
            f"preset {config.preset} is not for --format {config.format}: its records would carry "
            "the wrong name; leave --preset out (the defaults are those of voc0712-frcnn-c4-24k)"
        )
    for name in ("min_size_train", "anchor_sizes", "anchor_ratios", "steps", "rates"):
        values = getattr(config, name)
        name = "lr" if name == "rates" else name
        if name != "steps" and not values:
            raise UserError(f"--{name} is empty; it must hold at least one number")
        if not all(0 < value < math.inf for value in values):
            raise UserError(f"--{name} is {values}; each of its numbers must be above 0")
    for name in _COUNTS:
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"--{name} is {getattr(config, name)}; it must be above 0")
    for name in ("weight_decay", "warmup_iters", "precise_bn_iters"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"--{name} is {getattr(config, name)}; it must be at least 0")
    if len(set(config.rates)) < len(config.rates):
        raise UserError(f"--lr is {config.lr}; a rate is named twice")
    if not 0 < config.holdout < 1:
        raise UserError(f"--holdout is {config.holdout}; it must be between 0 and 1")
    if config.steps and config.warmup_iters > min(config.steps):
        raise UserError(
            f"--warmup_iters is {config.warmup_iters}; it must end before the first of --steps "
            f"({min(config.steps)})"
        )
    if config.freeze_at not in range(6):
        raise UserError(
            f"--freeze_at is {config.freeze_at}; it must be 0 (nothing) to 5 (all stages)"
        )
    if config.network == "fpn" and len(config.anchor_sizes) != 5:
        raise UserError(
            f"--anchor_sizes is {config.anchor_sizes}; an FPN needs five, one for each of its levels"
        )
    for name in ("momentum", "score_threshold", "nms_threshold"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"--{name} is {getattr(config, name)}; it must be 0 to 1")
