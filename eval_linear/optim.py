"""SGD and LARS for many heads at once, each with its own learning rate; and the two schedules."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TRUST = 0.001  # SimSiam main_lincls.py: LARC(trust_coefficient=.001, clip=False)
EPS = 1e-8  # apex LARC


def lars_gradient(param: Tensor, grad: Tensor, weight_decay: float) -> Tensor:
    """The gradient that LARS hands to SGD; the leading axis counts independent heads.

    With w and g one head's parameter and gradient: (g + wd w) TRUST |w| / (|g| + wd |w| + EPS).
    This holds for weights and biases and at weight decay 0, as in apex's LARC with ``clip=False``,
    which SimSiam used; some libraries skip the scaling when the weight decay is 0. Where w or g is
    all zeros (a bias before its first step) g passes unchanged, also as in apex.

    Args:
        param, grad: (heads, ...).
        weight_decay: wd.

    Returns:
        (heads, ...).
    """
    shape = (-1,) + (1,) * (param.dim() - 1)
    w = param.flatten(1).norm(dim=1).view(shape)
    g = grad.flatten(1).norm(dim=1).view(shape)
    scaled = (grad + weight_decay * param) * (TRUST * w / (g + weight_decay * w + EPS))
    return torch.where((w > 0) & (g > 0), scaled, grad)


class HeadOptimizer:
    """SGD with momentum, or LARS, on tensors whose leading axis counts independent heads.

    Args:
        params: tensors (heads, ...), changed in place by :meth:`step`.
        rates: learning rate of each head.
        lars: scale gradients by :func:`lars_gradient`.
        momentum, weight_decay, nesterov: as in ``torch.optim.SGD``.

    Attributes:
        momenta: the momentum buffers, in the order of ``params``.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        rates: Sequence[float],
        *,
        lars: bool,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        self.params = list(params)
        self.momenta = [torch.zeros_like(p) for p in self.params]
        self.rates = torch.tensor(rates, device=self.params[0].device)
        self.lars, self.momentum = lars, momentum
        self.weight_decay, self.nesterov = weight_decay, nesterov

    def step(self, grads: Sequence[Tensor], factor: float = 1.0) -> None:
        """One step with all rates multiplied by ``factor`` (the schedule's)."""
        for param, grad, buffer in zip(self.params, grads, self.momenta, strict=True):
            if self.lars:
                grad = lars_gradient(param, grad, self.weight_decay)
            elif self.weight_decay:
                grad = grad + self.weight_decay * param
            buffer.mul_(self.momentum).add_(grad)
            move = grad + self.momentum * buffer if self.nesterov else buffer
            param.sub_(factor * self.rates.view((-1,) + (1,) * (param.dim() - 1)) * move)


def schedule_factor(
    schedule: str, epoch: int, epochs: int, milestones: Sequence[int], gamma: float
) -> float:
    """What the learning rate is multiplied by in ``epoch`` (from 0).

    ``"cosine"``: (1 + cos(π epoch / epochs)) / 2, once per epoch (SimSiam main_lincls.py).
    ``"step"``: ``gamma`` to the number of milestones ≤ epoch (MoCo main_lincls.py).
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return gamma ** sum(epoch >= milestone for milestone in milestones)
