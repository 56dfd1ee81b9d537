"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297; He et al. 2020, arXiv 1911.05722): a queue of negatives."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods.across import average_buffers, everyones, processes, rank
from pretrain.methods.following import follow, follower
from pretrain.methods.heads import mlp
from pretrain.methods.method import Method, as_float, check_positive, check_range, in_float
from pretrain.methods.split_norm import split_batchnorm
from siambench.errors import UserError
from siambench.resnet import build_resnet, feature_dim


@dataclass(frozen=True)
class Options:
    """Settings of MoCo alone.

    Args:
        queue: keys kept as negatives; a multiple of the batch (of twice the batch when symmetric).
        momentum: of the key encoder.
        temperature: of the softmax.
        bn_groups: parts of the batch, over all processes, with batch statistics of their own: MoCo's
            GPUs. Keys are shuffled over the whole batch before they are cut, so that who shares
            statistics with a key says nothing of which query it belongs to.
    """

    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    bn_groups: int = 8

    def __post_init__(self) -> None:
        check_positive(self, "temperature")
        check_range(self, 0, 1, "momentum")
        check_range(self, 1, math.inf, "queue", "bn_groups")


class MoCo(Method):
    """Query encoder and the key encoder that follows it; the queue (K, d) is the same in all processes.

    The projector has no batch norm (facebookresearch/moco, moco/builder.py). ``--symmetric false`` is
    the paper; the SimSiam paper's reproduction is symmetric (its appendix C).
    """

    label = "MoCo v2"
    uses = frozenset({"dim", "hidden_dim", "symmetric"})
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        o, features = self.options, feature_dim(config.arch)
        self.symmetric, self.seed, self.step = config.symmetric, config.seed, 0
        at_once = config.batch_size * (2 if config.symmetric else 1)
        if o.queue % at_once:
            raise UserError(
                f"--options.queue is {o.queue}; it must be a multiple of {at_once}, a step's keys"
            )
        self.backbone = build_resnet(config.arch, zero_init_residual=config.zero_init_residual)
        self.projector = mlp([features, config.hidden_dim or features, config.dim], False, None)
        split_batchnorm(self.backbone, o.bn_groups, config.batch_size // config.accumulate)
        self.key_backbone, self.key_projector = follower(self.backbone), follower(self.projector)
        self.queue: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(o.queue, config.dim), dim=1))
        self._fresh: list[Tensor] = []

    def forward(self, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """InfoNCE of queries of the first view and keys of the second (symmetric: and the reverse); q1.

        Symmetric is the mean of the two, as SimSiam's loss is.
        """
        pairs = [(0, 1), (1, 0)] if self.symmetric else [(0, 1)]
        losses, first = [], None
        for query, key in pairs:
            q = F.normalize(as_float(self.projector(self.backbone(views[query]))), dim=1)
            k = self.keys(views[key])
            first = q.detach() if first is None else first
            losses.append(info_nce(q, k, self.queue.clone(), self.options.temperature))
            self._fresh.append(k)
        assert first is not None
        return torch.stack(losses).mean(), first

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """Unit keys (N, d) of this process's images (N, 3, H, W), which others may have encoded."""
        n = len(images)
        there, back = self.shuffle(n * processes(), images.device)
        mine = slice(rank() * n, (rank() + 1) * n)
        shuffled = everyones(images)[there[mine]].contiguous(memory_format=torch.channels_last)
        k = F.normalize(as_float(self.key_projector(self.key_backbone(shuffled))), dim=1)
        return everyones(k)[back[mine]]

    @torch.compiler.disable
    def shuffle(self, images: int, device: torch.device) -> Tensor:
        """A random order and its reverse (2, images), the same in all processes.

        Decided by seed, step, and how many passes this step had before.
        """
        order = np.random.default_rng([self.seed, 3, self.step, len(self._fresh)]).permutation(
            images
        )
        both = torch.from_numpy(np.stack((order, order.argsort())))
        if device.type == "cuda":  # from pinned memory the host need not wait
            both = both.pin_memory()
        return both.to(device, non_blocking=True)

    def before_step(self, step: int) -> None:
        """The step's number, for its shuffles."""
        self.step = step

    @torch.no_grad()
    def after_update(self, done: int, total: int) -> None:
        """Momentum update; the step's keys take the place of the oldest."""
        follow(self.key_backbone, self.backbone, self.options.momentum)
        follow(self.key_projector, self.projector, self.options.momentum)
        if self._fresh:
            keys = torch.cat([everyones(k) for k in self._fresh])
            start = (done - 1) * len(keys) % len(self.queue)
            self.queue[start : start + len(keys)] = keys
        self._fresh = []
        average_buffers(nn.ModuleList([self.backbone, self.key_backbone]))


@in_float
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each query's key against the queue (He et al. 2020, equation 1).

    Args:
        q, k: unit rows (N, d).
        queue: unit rows (K, d).
        temperature: of the cosines.
    """
    logits = torch.cat(((q * k).sum(1, keepdim=True), q @ queue.to(q.dtype).T), 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
