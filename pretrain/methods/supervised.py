"""Supervised pre-training: cross entropy on the class folders, the literature's other baseline."""

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods.method import Method
from siambench.resnet import build_resnet, feature_dim


class Supervised(Method):
    """Backbone and a linear classifier on one view."""

    label = "supervised"
    views = 1

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.head = nn.Linear(feature_dim(config.arch), classes)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, None]:
        """Cross entropy of one view (N, 3, H, W) against ``labels`` (N,); nothing to monitor."""
        return F.cross_entropy(self.head(self.backbone(views[0])).float(), labels), None
