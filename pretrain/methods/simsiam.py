"""SimSiam (Chen & He 2021, arXiv 2011.10566)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from siambench.resnet import build_resnet, feature_dim


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) of the paper's Algorithm 1: minus the cosine, averaged over the batch.

    Args:
        p: predictions (N, d).
        z: projections (N, d); no gradient flows into them (stop-gradient).
    """
    wide = torch.promote_types(p.dtype, torch.float32)  # bfloat16 under autocast is too coarse
    return -F.cosine_similarity(p.to(wide), z.detach().to(wide), dim=1).mean()


class SimSiam(nn.Module):
    """Backbone, three-layer projector and two-layer predictor.

    Projector: fc-BN-ReLU, fc-BN-ReLU, fc-BN without affine; predictor: fc-BN-ReLU, fc (paper,
    section 3 "Baseline settings"; facebookresearch/simsiam, simsiam/builder.py). The projector's
    last fc needs no bias, since a batch norm follows it.
    """

    label = "SimSiam"
    views = 2

    def __init__(self, config: PretrainConfig, classes: int) -> None:
        super().__init__()
        features = feature_dim(config.arch)
        hidden, dim, bottleneck = config.hidden_dim or features, config.dim, config.pred_dim
        self.fix_pred_lr = config.fix_pred_lr
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = nn.Sequential(
            nn.Linear(features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, bottleneck, bias=False),
            nn.BatchNorm1d(bottleneck),
            nn.ReLU(inplace=True),
            nn.Linear(bottleneck, dim),
        )

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithm 1: the symmetrised loss of two views (N, 3, H, W), and z1 (N, d) for monitors.

        The views go through the network one after the other: each batch norm sees one view's
        statistics, as in the paper. Labels are not used.
        """
        x1, x2 = views
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2
        return loss, z1.detach()

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; ``fix_lr`` marks one whose learning rate does not decay (Table 1)."""
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        return [
            {"params": encoder, "fix_lr": False},
            {"params": list(self.predictor.parameters()), "fix_lr": self.fix_pred_lr},
        ]
