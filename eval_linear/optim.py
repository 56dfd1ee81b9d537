"""SGD and LARS for many heads at once, each with its own learning rate; and the two schedules."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TRUST = 0.001  # SimSiam main_lincls.py: LARC(trust_coefficient=.001, clip=False)
EPS = 1e-8  # apex LARC


def lars_(param: Tensor, grad: Tensor, decay: Tensor) -> Tensor:
    """Make ``grad`` what LARS hands to SGD, in place; the leading axis counts independent heads.

    With w and g one head's parameter and gradient: (g + wd w) TRUST |w| / (|g| + wd |w| + EPS).
    This holds for weights and biases and at weight decay 0, as in apex's LARC with ``clip=False``,
    which SimSiam used. Where w or g is all zeros (a bias before its first step) g passes unchanged,
    also as in apex.

    At weight decay 0 lightly's LARS (lightly/utils/lars.py, after Lightning Bolts, whose docstring
    warns of it) and timm's unless ``always_adapt=True`` do not scale but take a plain SGD step.

    Args:
        param, grad: (heads, ...).
        decay: wd of each head, of a shape that broadcasts to (heads, ...).
    """
    w = _norms(param)
    g = _norms(grad)
    scaled = (w > 0) & (g > 0)
    scale = torch.where(scaled, TRUST * w / (g + decay * w + EPS), 1.0)
    return grad.mul_(scale).addcmul_(param, torch.where(scaled, decay * scale, 0.0))


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


class HeadOptimizer:
    """SGD with momentum, or LARS, on tensors whose leading axis counts independent heads.

    Args:
        params: tensors (heads, ...), changed in place by :meth:`step`.
        rates: learning rate of each head.
        decays: weight decay of each head (L2, as in ``torch.optim.SGD``).
        lars: scale gradients by :func:`lars_`.
        momentum, nesterov: as in ``torch.optim.SGD``.

    Attributes:
        momenta: the momentum buffers, in the order of ``params``.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        rates: Sequence[float],
        decays: Sequence[float],
        *,
        lars: bool,
        momentum: float,
        nesterov: bool,
    ) -> None:
        self.params = list(params)
        self.momenta = [torch.zeros_like(p) for p in self.params]
        like = self.params[0]
        self.rates = torch.tensor(rates, dtype=like.dtype, device=like.device)
        self.decays = torch.tensor(decays, dtype=like.dtype, device=like.device)
        self.lars, self.momentum, self.nesterov = lars, momentum, nesterov
        self._decay = any(decays)

    def step(
        self, grads: Sequence[Tensor], factor: float = 1.0, heads: slice = slice(None)
    ) -> None:
        """One step of some heads with their rates multiplied by ``factor`` (the schedule's).

        Args:
            grads: one per parameter, (len(heads), ...); overwritten.
            factor: of every rate.
            heads: which ones.
        """
        for whole, grad, momenta in zip(self.params, grads, self.momenta, strict=True):
            param, buffer = whole[heads], momenta[heads]
            shape = (-1,) + (1,) * (param.dim() - 1)
            rate, decay = (x[heads].view(shape) for x in (self.rates, self.decays))
            if self.lars:
                lars_(param, grad, decay)
            elif self._decay:
                grad.addcmul_(param, decay)
            torch.add(grad, buffer, alpha=self.momentum, out=buffer)
            move = grad.add_(buffer, alpha=self.momentum) if self.nesterov else buffer
            param.addcmul_(move, rate * -factor)


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
