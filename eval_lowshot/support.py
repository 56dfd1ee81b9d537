"""Newton steps solved exactly, on the few images that hold a solution: for large costs.

Where g is the gradient, the step is -(g - Σ βᵢ zᵢ) over the images with a positive hinge, with
(K + diag(1 / 2Cs)) β = z·g and K their products with each other. That it starts from g, and not from
the labels, lets each step mend what the one before lost to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eval_lowshot.rows import STILL, Rows

_MOST_STEPS = 50
_FAR = 1e-4  # squared length of a step, relative to the weights', after which there is rounding to mend
_STEPS = 5  # that it usually takes
_FLOPS = 5e10  # of a core; what matters is the ratio of the times below to it
_GATHER = 6e-9  # seconds to fetch one product
_CALL = 2e-4  # seconds of a row's step, or of an iteration, that have nothing to do with its size


@dataclass(frozen=True)
class Gram:
    """Products of images with each other.

    Attributes:
        products: (N, N) of all images.
        rows: (n,), those of the problem.
    """

    products: Tensor
    rows: Tensor

    def of(self, chosen: Tensor) -> Tensor:
        """(m, m) of some of the problem's images (m,)."""
        rows = self.rows[chosen]
        return self.products[rows.unsqueeze(1), rows]


def support_is_faster(rows: Rows, inner: float) -> bool:
    """Whether exact steps are expected to take less time than ``inner`` conjugate gradients."""
    held = (rows.hinge() > 0).sum(1).double()
    exact = _STEPS * (held**3 / 3 / _FLOPS + held**2 * _GATHER + _CALL).sum()
    count = max(len(rows.y), 16)  # fewer rows do not take less time
    return float(exact) < inner * (4 * rows.z.numel() * count / _FLOPS + _CALL)


def support_newton(rows: Rows, gram: Gram) -> bool:
    """Solve rows in place, to float32's precision.

    Args:
        rows: near the solution, so that few images have a positive hinge.
        gram: products of the images.

    Returns:
        Whether all are solved; not so if a system is not definite in float32, for costs beyond all
        use. The others are as near as they have come.
    """
    left = torch.arange(len(rows.y), device=rows.y.device)
    now = rows
    for _ in range(_MOST_STEPS):
        hinge = now.hinge()
        gradient = now.w - 2 * now.cost * ((now.s * now.y * hinge) @ now.z)
        along = gradient @ now.z.mT
        beta = torch.zeros_like(now.y)
        for q in range(len(beta)):
            held = hinge[q].nonzero().squeeze(1)
            system = gram.of(held)
            system.diagonal().add_(0.5 / (now.cost[q] * now.s[q, held]))
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed:
                break
            beta[q, held] = torch.cholesky_solve(along[q, held, None], factor).squeeze(1)
        if failed:
            break
        step = beta @ now.z - gradient
        now.move(step, step @ now.z.mT)
        # Where the same images hold, the system was that of the solution, but for rounding.
        length = step.square().sum(1) / now.w.square().sum(1)
        going = ((now.hinge() > 0) != (hinge > 0)).any(1) & (length > STILL) | (length > _FAR)
        rows.put(left, now)
        left = left[going]
        if not len(left):
            break
        now = now.take(going)
    rows.renew_pull()
    return not len(left)
