"""Newton steps solved exactly, on the few images that hold a solution: for large costs.

The solution of the system is w = Σ βᵢ zᵢ over the images with a positive hinge, where
(K + diag(1 / 2Cs)) β = y and K has their products with each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eval_lowshot.rows import STILL, Rows

_MOST_STEPS = 50
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
        beta = torch.zeros_like(now.y)
        for q in range(len(beta)):
            held = hinge[q].nonzero().squeeze(1)
            system = gram.of(held)
            system.diagonal().add_(0.5 / (now.cost[q] * now.s[q, held]))
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed:
                break
            beta[q, held] = torch.cholesky_solve(now.y[q, held, None], factor).squeeze(1)
        if failed:
            break
        w = beta @ now.z
        step, margin = w - now.w, w @ now.z.mT - now.margin
        now.move(step, margin)
        # Where the same images hold, the system was that of the solution.
        going = ((now.hinge() > 0) != (hinge > 0)).any(1)
        going &= step.square().sum(1) > STILL * w.square().sum(1)
        rows.put(left, now)
        left = left[going]
        if not len(left):
            break
        now = now.take(going)
    rows.renew_pull()
    return not len(left)
