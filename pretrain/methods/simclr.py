"""SimCLR (Chen et al. 2020, arXiv 2002.05709): every other image of the batch is a negative."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods.across import everyones, rank
from pretrain.methods.heads import mlp, together
from pretrain.methods.method import Method, check_positive, check_range, in_float
from siambench.resnet import build_resnet, feature_dim


@dataclass(frozen=True)
class Options:
    """Settings of SimCLR alone.

    Args:
        temperature: of the softmax.
        layers: of the projector: 2 in the paper; 3 in the SimSiam paper's reproduction (appendix C).
    """

    temperature: float = 0.1
    layers: int = 2

    def __post_init__(self) -> None:
        check_positive(self, "temperature")
        check_range(self, 1, math.inf, "layers")


class SimCLR(Method):
    """Backbone and projector, a batch norm behind each layer of it, the last without bias.

    Source: google-research/simclr, model_util.py.
    """

    label = "SimCLR"
    uses = frozenset({"dim", "hidden_dim"})
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        features = feature_dim(config.arch)
        hidden = config.hidden_dim or features
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = mlp(
            [features, *[hidden] * (self.options.layers - 1), config.dim],
            hidden_bn=True,
            output_bn=nn.BatchNorm1d(config.dim),
        )
        self.projector[-1].bias.requires_grad_(False)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """NT-Xent of two views (N, 3, H, W), and z1 (N, d) for monitors."""
        z1, z2 = together(self.backbone, self.projector, views)
        return nt_xent(z1, z2, self.options.temperature), z1.detach()


@in_float
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The paper's equation 1: each view's other view against all views of all other images.

    The sum of both views' means, as google-research/simclr (objective.py), so twice the paper's mean.

    Args:
        z1, z2: two views' outputs (N, d) of this process.
        temperature: of the cosines.

    Returns:
        Of this process's 2 N views.
    """
    own = rank() * len(z1) + torch.arange(len(z1), device=z1.device)
    a, b = (F.normalize(z, dim=1) for z in (z1, z2))
    all_a, all_b = everyones(a), everyones(b)
    losses = []
    for x, same, other in ((a, all_a, all_b), (b, all_b, all_a)):
        itself = F.one_hot(own, len(same)).bool()
        negatives = (x @ same.T / temperature).masked_fill(itself, -torch.inf)
        losses.append(F.cross_entropy(torch.cat((x @ other.T / temperature, negatives), 1), own))
    return losses[0] + losses[1]
