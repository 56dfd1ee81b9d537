"""Linear classifiers on one layer's features, many at once as one matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor

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

    def logits(self, features: Tensor) -> Tensor:
        """Scores (N, H, C) of features (N, D), normalised by the running statistics."""
        return self._scores(self._normalised(features, training=False))

    def gradients(
        self, features: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Cross-entropy of a training batch and its gradient; updates the running statistics.

        Args:
            features: (N, D).
            labels: (N,).
            weight: (N, H): what each image counts in each head's mean.

        Returns:
            The loss (H,), and the gradients of ``weight`` and ``bias``.
        """
        features = self._normalised(features, training=True)
        log_p = self._scores(features).log_softmax(2)
        label = labels.view(-1, 1, 1).expand(-1, log_p.shape[1], 1)
        at_label = log_p.gather(2, label)
        loss = -(at_label.squeeze(2) * weight).sum(0)
        slope = log_p.exp().scatter_(2, label, at_label.exp() - 1) * weight.unsqueeze(2)
        return loss, [(slope.flatten(1).T @ features).view_as(self.weight), slope.sum(0)]

    def _scores(self, features: Tensor) -> Tensor:
        flat = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
        return flat.unflatten(1, self.bias.shape)

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
