"""VICReg (Bardes et al. 2022, arXiv 2105.04906): keep variance, drop covariance, draw views together."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.methods.across import everyones
from pretrain.methods.heads import mlp
from pretrain.methods.method import Method, check_range, in_float
from siambench.resnet import build_resnet, feature_dim


@dataclass(frozen=True)
class Options:
    """Settings of VICReg alone.

    Args:
        invariance: weight of the distance between views.
        variance: weight of the hinge on each channel's standard deviation.
        covariance: weight of the squared covariances.
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "invariance", "variance", "covariance")


class VICReg(Method):
    """Backbone and three-layer expander (facebookresearch/vicreg, main_vicreg.py)."""

    label = "VICReg"
    uses = frozenset({"dim", "hidden_dim"})
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        features = feature_dim(config.arch)
        hidden = config.hidden_dim or features
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = mlp([features, hidden, hidden, config.dim], True, None, bias=False)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of two views (N, 3, H, W), and z1 (N, d) for monitors."""
        z1, z2 = (self.projector(self.backbone(view)) for view in views)
        return self.loss(z1, z2), z1.detach()

    @in_float
    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The paper's equation 6 of two views' outputs (N, d)."""
        o = self.options
        loss = o.invariance * F.mse_loss(z1, z2)
        for z in map(everyones, (z1, z2)):
            centred = z - z.mean(0)
            std = (centred.square().sum(0) / (len(z) - 1) + 1e-4).sqrt()
            cov = centred.T @ centred / (len(z) - 1)
            off = cov.square().sum() - cov.diagonal().square().sum()
            loss = loss + o.variance * F.relu(1 - std).mean() / 2 + o.covariance * off / z.shape[1]
        return loss
