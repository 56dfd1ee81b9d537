"""SimSiam (Chen & He 2021, arXiv 2011.10566), with the switches of the paper's section 4."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods.heads import mlp
from pretrain.methods.method import HEAD_FIELDS, Method, in_float
from siambench.resnet import build_resnet, feature_dim


@in_float
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Minus the cosine of p and z (N, d), averaged over the batch: the paper's equation 1."""
    return -F.cosine_similarity(p, z, dim=1).mean()


@in_float
def cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    """-softmax(z) · log softmax(p) along the d channels of p and z (N, d), averaged over the batch.

    The paper's section 4.5.
    """
    return -(F.softmax(z, dim=1) * F.log_softmax(p, dim=1)).sum(dim=1).mean()


class SimSiam(Method):
    """Backbone, three-layer projector and two-layer predictor.

    Projector: fc-BN-ReLU, fc-BN-ReLU, fc-BN without affine; predictor: fc-BN-ReLU, fc (paper,
    section 3 "Baseline settings"; facebookresearch/simsiam, simsiam/builder.py). A fc has a bias
    where no batch norm follows it.

    Switches (paper, section 4; docs/ablations.md): ``stop_gradient`` (4.1), ``predictor`` and
    ``fix_pred_lr`` (4.2), ``mlp_bn`` (4.4), ``similarity`` (4.5), ``symmetric`` (4.6), ``dim``
    (appendix B). On the affine of the batch norms the paper says only that the projector's output
    does not need it (4.4: 68.1 with, 68.2 without); the official code leaves it out there. The
    predictor's output norm in ``mlp_bn="all"`` is an ordinary one, with affine, as the hidden ones.
    """

    label = "SimSiam"
    uses = frozenset(HEAD_FIELDS)

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        features = feature_dim(config.arch)
        hidden, dim, bn = config.hidden_dim or features, config.dim, config.mlp_bn
        self.stop_gradient, self.symmetric = config.stop_gradient, config.symmetric
        self.similarity = negative_cosine if config.similarity == "cosine" else cross_entropy
        self.fix_pred_lr = config.fix_pred_lr
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = mlp(
            [features, hidden, hidden, dim],
            hidden_bn=bn != "none",
            output_bn=nn.BatchNorm1d(dim, affine=False) if bn in ("default", "all") else None,
        )
        self.predictor: nn.Module = nn.Identity()
        if config.predictor != "none":
            self.predictor = mlp(
                [dim, config.pred_dim, dim],
                hidden_bn=bn != "none",
                output_bn=nn.BatchNorm1d(dim) if bn == "all" else None,
            )
        if config.predictor == "fixed":
            self.predictor.requires_grad_(False)

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithm 1: the loss of two views (N, 3, H, W), and z1 (N, d) for monitors.

        The views go through the network one after the other: each batch norm sees one view's
        statistics, as in the paper. The asymmetric loss has no p2, and only a forward pass to its
        target z2 when the gradient stops there. Labels are not used.
        """
        x1, x2 = views
        f, h, D = self.encode, self.predictor, self.distance
        target_only = self.stop_gradient and not self.symmetric
        z1 = f(x1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not target_only):
            z2 = f(x2)
        if not self.symmetric:
            return D(h(z1), z2), z1.detach()
        p1, p2 = h(z1), h(z2)
        return D(p1, z2) / 2 + D(p2, z1) / 2, z1.detach()

    def encode(self, x: Tensor) -> Tensor:
        """The paper's f: images (N, 3, H, W) to projections (N, d)."""
        return self.projector(self.backbone(x))

    def distance(self, p: Tensor, z: Tensor) -> Tensor:
        """The paper's D of predictions p and targets z (N, d), with the stop-gradient or without."""
        if self.stop_gradient:
            z = z.detach()
        return self.similarity(p, z)

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; ``fix_lr`` marks one whose learning rate does not decay (Table 1).

        A predictor that is fixed or not there is in none: weight decay does not reach it either.
        """
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        predictor = [p for p in self.predictor.parameters() if p.requires_grad]
        groups = [{"params": encoder, "fix_lr": False}]
        if predictor:
            groups.append({"params": predictor, "fix_lr": self.fix_pred_lr})
        return groups
