"""BYOL (Grill et al. 2020, arXiv 2006.07733): predict what a momentum encoder makes of the other view."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.methods.following import follow
from pretrain.methods.heads import mlp
from pretrain.methods.method import Method, check_range, in_float
from siambench.resnet import build_resnet, feature_dim


@dataclass(frozen=True)
class Options:
    """Settings of BYOL alone.

    Args:
        momentum: of the target network at the start; it rises to 1 by a cosine.
    """

    momentum: float = 0.996

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "momentum")


class BYOL(Method):
    """Online network (backbone, projector, predictor) and target network (backbone, projector).

    The target starts from weights of its own (google-deepmind/deepmind-research, byol/byol_experiment.py).
    """

    label = "BYOL"
    uses = frozenset({"dim", "hidden_dim", "pred_dim"})
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        features = feature_dim(config.arch)
        hidden, dim = config.hidden_dim or features, config.dim
        for name in ("", "target_"):
            net = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
            self.add_module(f"{name}backbone", net)
            self.add_module(
                f"{name}projector", mlp([features, hidden, dim], True, None, bias=False)
            )
        self.predictor = mlp([dim, config.pred_dim, dim], True, None, bias=False)
        for target in (self.target_backbone, self.target_projector):
            target.requires_grad_(False)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The paper's equation 2, symmetrised, of two views (N, 3, H, W), and z1 (N, d) for monitors."""
        z1, z2 = (self.projector(self.backbone(view)) for view in views)
        with torch.no_grad():
            t1, t2 = (self.target_projector(self.target_backbone(view)) for view in views)
        loss = regression(self.predictor(z1), t2) + regression(self.predictor(z2), t1)
        return loss, z1.detach()

    def after_update(self, done: int, total: int) -> None:
        """The target follows; the momentum of step k of K is 1 - (1 - τ) (cos(π k / K) + 1) / 2."""
        rest = (1 - self.options.momentum) * (math.cos(math.pi * (done - 1) / total) + 1) / 2
        follow(self.target_backbone, self.backbone, 1 - rest)
        follow(self.target_projector, self.projector, 1 - rest)


@in_float
def regression(p: Tensor, t: Tensor) -> Tensor:
    """Squared distance of the unit vectors of p and t (N, d), averaged over the batch."""
    return 2 - 2 * F.cosine_similarity(p, t, dim=1).mean()
