"""Linear classifiers on one layer's features, many at once as one matrix product."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_linear.losses import slope_

_COLUMNS = 2048  # H × C of one matrix product on a CPU: wider ones leave the cache, 30 % slower
_LOGITS = 2**25  # N × H × C of one matrix product on a GPU
_BN_MOMENTUM, _BN_EPS = 0.1, 1e-5  # torch's defaults; mmselfsup resnet50_multihead.py says 0.1


class Heads:
    """``count`` linear classifiers that see the same features and start from the same weights.

    Weights start as N(0, 0.01), biases as 0 (SimSiam and MoCo, main_lincls.py).

    Args:
        dim: length D of the features.
        classes: number of classes C.
        count: number of heads H.
        channels: normalise the features per channel first, without scale and shift (mmselfsup's
            multi_cls_head: BatchNorm over the pooled map before it is flattened); 0 for no norm.
        seed: of the initial weights.
        device: where the tensors live.

    Attributes:
        weight: (H, C, D); bias: (H, C).
        mean, var: the norm's running statistics (channels,).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        count: int,
        *,
        channels: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        first = torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed)) * 0.01
        self.weight = first.repeat(count, 1, 1).to(device)
        self.bias = torch.zeros(count, classes, device=device)
        self.channels = channels
        self.mean = torch.zeros(channels, device=device)
        self.var = torch.ones(channels, device=device)
        self._gradient: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Scores (N, H, C) of features (N, D), normalised by the running statistics."""
        return self._scores(self._normalised(features, training=False))

    def gradients(
        self, features: Tensor, labels: Tensor, weight: Tensor
    ) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Loss of a training batch and its gradient; updates the running statistics.

        Heads are done in blocks that fit the cache (on a GPU: whose logits take 128 MiB), at least one
        head at a time, and a block's gradient is overwritten by the next one's: use it at once. So
        memory is bounded whatever the number of heads: beyond features and heads, one block's logits
        (N, h, C) and gradient (h, C, D).

        Args:
            features: (N, D).
            labels: (N,) for softmax; (N, C) of 1, 0 left out and -1 for sigmoids.
            weight: (N, H): what each image (or label) counts in each head's mean.

        Yields:
            Which heads, their losses (h,), and the gradients of their ``weight`` and ``bias``.
        """
        features = self._normalised(features, training=True)
        count, classes, dim = self.weight.shape
        most = _COLUMNS if features.device.type == "cpu" else _LOGITS // len(features)
        size = min(count, max(1, most // classes))
        if self._gradient is None or len(self._gradient) < size:
            self._gradient = torch.empty_like(self.weight[:size])
        for start in range(0, count, size):
            block = slice(start, min(start + size, count))
            slope = self._scores(features, block)
            loss = slope_(slope, labels, weight[:, block])
            gradient = self._gradient[: slope.shape[1]]
            torch.mm(slope.flatten(1).T, features, out=gradient.view(-1, dim))
            yield block, loss, [gradient, slope.sum(0)]

    def _scores(self, features: Tensor, block: slice = slice(None)) -> Tensor:
        weight, bias = self.weight[block], self.bias[block]
        return F.linear(features, weight.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape)

    def _normalised(self, features: Tensor, training: bool) -> Tensor:
        if not self.channels:
            return features
        maps = features.unflatten(1, (self.channels, -1))
        maps = F.batch_norm(maps, self.mean, self.var, None, None, training, _BN_MOMENTUM, _BN_EPS)
        return maps.flatten(1)

    def plain(self, head: int) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of one head with the norm folded in: logits = x @ w.T + b."""
        weight, bias = self.weight[head], self.bias[head]
        if not self.channels:
            return weight, bias
        repeat = weight.shape[1] // self.channels
        scale = (self.var + _BN_EPS).rsqrt().repeat_interleave(repeat)
        weight = weight * scale
        return weight, bias - weight @ self.mean.repeat_interleave(repeat)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, not copied."""
        return {"weight": self.weight, "bias": self.bias, "mean": self.mean, "var": self.var}
