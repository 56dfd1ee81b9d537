"""SimSiam with k steps to an outer loop (paper, section 5.2, "Multi-step alternation")."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.methods.following import follow, follower
from pretrain.methods.method import HEAD_FIELDS, check_range
from pretrain.methods.simsiam import SimSiam


@dataclass(frozen=True)
class Options:
    """Settings of the alternation alone.

    Args:
        steps: k, the updates between two targets; 0 for those of an epoch.
    """

    steps: int = 10

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "steps")


class Alternating(SimSiam):
    """Targets are outputs of the encoder as it was at the last multiple of k steps.

    The paper computes the targets of the next k steps beforehand and keeps them. The encoder of that
    moment, kept instead, gives the same ones when they are needed: the views are the same, and batch
    norm takes the statistics of the same batch. With k = 1 this is SimSiam.
    """

    label = "SimSiam, alternating"
    uses = frozenset(HEAD_FIELDS) - {"symmetric", "stop_gradient"}
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        self.interval = self.options.steps or images // config.batch_size
        self.kept_backbone, self.kept_projector = follower(self.backbone), follower(self.projector)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The symmetrised loss of two views (N, 3, H, W) against kept targets, and z1 (N, d)."""
        z1, z2 = (self.encode(view) for view in views)
        with torch.no_grad():
            t1, t2 = (self.kept_projector(self.kept_backbone(view)) for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return self.distance(p1, t2) / 2 + self.distance(p2, t1) / 2, z1.detach()

    def after_update(self, done: int, total: int) -> None:
        """The outer loop: a new target after every k steps."""
        if done % self.interval == 0:
            follow(self.kept_backbone, self.backbone, 0)
            follow(self.kept_projector, self.projector, 0)
