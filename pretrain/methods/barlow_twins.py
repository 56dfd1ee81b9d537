"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): no two channels of the output say the same."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods.across import processes, total
from pretrain.methods.heads import mlp
from pretrain.methods.method import Method, check_range, in_float
from siambench.resnet import build_resnet, feature_dim


@dataclass(frozen=True)
class Options:
    """Settings of Barlow Twins alone.

    Args:
        redundancy: weight of the off-diagonal terms, the paper's lambda.
        bias_rate: learning rate of biases and batch norms over that of the weights; with
            --exclude_1d.
    """

    redundancy: float = 0.0051
    bias_rate: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "redundancy", "bias_rate")


class BarlowTwins(Method):
    """Backbone, three-layer projector without biases, and a batch norm (facebookresearch/barlowtwins, main.py)."""

    label = "Barlow Twins"
    uses = frozenset({"dim", "hidden_dim"})
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        features = feature_dim(config.arch)
        hidden = config.hidden_dim or features
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = mlp([features, hidden, hidden, config.dim], True, None, bias=False)
        self.norm = nn.BatchNorm1d(config.dim, affine=False)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of two views (N, 3, H, W), and z1 (N, d) for monitors."""
        z1, z2 = (self.projector(self.backbone(view)) for view in views)
        return self.loss(z1, z2), z1.detach()

    @in_float
    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The paper's equation 1 of two views' outputs (N, d)."""
        c = total(self.norm(z1).T @ self.norm(z2)) / (len(z1) * processes())
        on = torch.diagonal(c)
        off = c.square().sum() - on.square().sum()
        return (on - 1).square().sum() + self.options.redundancy * off

    def param_groups(self) -> list[dict[str, Any]]:
        """Weights; then biases and batch norms, at a rate of their own."""
        weights, rest = [], []
        for parameter in self.parameters():
            (rest if parameter.ndim == 1 else weights).append(parameter)
        return [
            {"params": weights, "fix_lr": False},
            {"params": rest, "fix_lr": False, "scale": self.options.bias_rate},
        ]
