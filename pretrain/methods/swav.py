"""SwAV (Caron et al. 2020, arXiv 2006.09882): predict the other view's cluster, clusters made on the go."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods.across import everyones, processes, rank, total
from pretrain.methods.heads import mlp, together
from pretrain.methods.method import Method, as_float, check_positive, check_range, in_float
from siambench.errors import UserError
from siambench.resnet import build_resnet, feature_dim


@dataclass(frozen=True)
class Options:
    """Settings of SwAV alone.

    Args:
        prototypes: number of clusters.
        temperature: of the softmax over them.
        epsilon: of the entropy in the assignment.
        iterations: of Sinkhorn and Knopp.
        frozen_steps: first steps in which the prototypes stay as they are.
        queue: embeddings of each view kept for the assignment, for batches much smaller than the
            prototypes; a multiple of the batch; 0 for none.
        queue_from: steps after which the queue takes part.
        weight_norm: take prototypes as unit vectors with gradient, as in the SimSiam paper (6.2);
            without, they are set to unit length after each update, as in the official code.
        layers: of the projector: 2 in the paper; 3 in the SimSiam paper's reproduction (appendix C).
    """

    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    frozen_steps: int = 313
    queue: int = 0
    queue_from: int = 0
    weight_norm: bool = False
    layers: int = 2

    def __post_init__(self) -> None:
        check_positive(self, "temperature", "epsilon")
        check_range(self, 1, math.inf, "prototypes", "iterations", "layers")
        check_range(self, 0, math.inf, "frozen_steps", "queue", "queue_from")


class SwAV(Method):
    """Backbone, projector, prototypes; two views, and as many smaller ones as there are (multi-crop).

    The queue (2, Q, d) is the same in all processes; each contributes its share of it to the assignment
    (facebookresearch/swav, main_swav.py, has a queue per process instead).
    """

    label = "SwAV"
    multi_crop = True
    uses = frozenset({"dim", "hidden_dim"})
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        o, features = self.options, feature_dim(config.arch)
        if o.queue % config.batch_size:
            raise UserError(
                f"--options.queue is {o.queue}; it must be a multiple of --batch_size {config.batch_size}"
            )
        hidden = config.hidden_dim or features
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = mlp([features, *[hidden] * (o.layers - 1), config.dim], True, None)
        self.prototypes = nn.Linear(config.dim, o.prototypes, bias=False)
        self.queue: Tensor
        self.register_buffer("queue", torch.zeros(2 if o.queue else 0, o.queue, config.dim))
        self.batch, self.queued = config.batch_size, False
        self._fresh: list[Tensor] = []
        self._unit_prototypes()

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of views (N, 3, H, W), and z1 (N, d) for monitors."""
        outputs = together(self.backbone, self.projector, views)
        z = F.normalize(as_float(outputs), dim=2)
        self._fresh.append(z[:2].detach())
        return self.loss(z, self.prototypes.weight), z[0].detach()

    @in_float
    def loss(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """The swapped prediction of unit outputs (V, N, d) of V views and prototypes (K, d).

        Every view predicts the codes of the first two, its own excepted (equation 2, and 6 for more
        than two views).
        """
        c = F.normalize(prototypes, dim=1) if self.options.weight_norm else prototypes
        scores = z @ c.T
        logs = (scores / self.options.temperature).log_softmax(2)
        losses = []
        for target in (0, 1):
            q = self.codes(scores[target].detach(), c.detach(), target)
            losses += [-(q * p).sum(1).mean() for view, p in enumerate(logs) if view != target]
        return torch.stack(losses).mean()

    def codes(self, scores: Tensor, prototypes: Tensor, view: int) -> Tensor:
        """Soft assignments of this process's images (N, K), balanced over all images of all processes.

        Args:
            scores: cosines to the prototypes (N, K).
            prototypes: (K, d).
            view: 0 or 1: whose queue takes part.
        """
        o, n = self.options, len(scores)
        if self.queued:
            kept = self.queue[view].chunk(processes())[rank()]
            scores = torch.cat((scores, kept.to(scores.dtype) @ prototypes.T))
        return sinkhorn(scores, o.epsilon, o.iterations)[:n]

    def param_groups(self) -> list[dict[str, Any]]:
        """The encoder; then the prototypes, which torch's SGD cannot let in later otherwise."""
        (group,) = super().param_groups()
        encoder = [p for p in group["params"] if p is not self.prototypes.weight]
        return [
            {"params": encoder, "fix_lr": False},
            {"params": [self.prototypes.weight], "fix_lr": False},
        ]

    def before_step(self, step: int) -> None:
        """Whether the queue takes part: it is full, and old enough."""
        full = step * self.batch >= self.options.queue
        self.queued = self.options.queue > 0 and full and step >= self.options.queue_from

    def before_update(self, step: int) -> None:
        """Frozen prototypes have no gradient, so that neither momentum nor weight decay moves them."""
        if step < self.options.frozen_steps:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_update(self, done: int, total: int) -> None:
        """Unit prototypes; the step's embeddings take the place of the oldest in the queue."""
        self._unit_prototypes()
        if self.options.queue:
            fresh = torch.cat([everyones(z.transpose(0, 1)) for z in self._fresh]).transpose(0, 1)
            start = (done - 1) * fresh.shape[1] % self.options.queue
            self.queue[:, start : start + fresh.shape[1]] = fresh
        self._fresh = []

    def _unit_prototypes(self) -> None:
        if not self.options.weight_norm:
            with torch.no_grad():
                self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignments (N, K) of rows that sum to 1, whose columns sum to equal parts over all processes.

    Sinkhorn and Knopp's scaling of exp(scores / epsilon) (paper, equations 3 to 5), columns first.

    Args:
        scores: (N, K) of this process.
        epsilon: of the entropy.
        iterations: columns and rows once each.
    """
    q = (scores / epsilon).exp()
    for _ in range(iterations):
        q = q / total(q.sum(0, keepdim=True))
        q = q / q.sum(1, keepdim=True)
    return q
