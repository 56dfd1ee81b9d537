"""Newton steps solved exactly, on the few images that hold a solution: for large costs.

The solution of the system is w = Σ βᵢ zᵢ over the images with a positive hinge, where
(K + diag(1 / 2Cs)) β = y and K has their products with each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eval_lowshot.rows import Rows

_MOST_STEPS = 50
_STEPS = 5  # that it usually takes
_FLOPS = 5e10  # of a core; what matters is the ratio of the times below to it
_GATHER = 6e-9  # seconds to fetch one product
_CALL = 3e-4  # seconds of a row's step that have nothing to do with its size


@dataclass(frozen=True)
class Gram:
    """Products of images with each other.

    Attributes:
        products: (N, N) of all images.
        rows: (n,), those of the problem.
    """

    products: Tensor
    rows: Tensor

    def all(self) -> Tensor:
        """(n, n) of the problem's images."""
        return self.products[self.rows.unsqueeze(1), self.rows]

    def of(self, chosen: Tensor) -> Tensor:
        """(m, m) of some of the problem's images (m,)."""
        rows = self.rows[chosen]
        return self.products[rows.unsqueeze(1), rows]


def support_is_faster(rows: Rows, inner: float) -> bool:
    """Whether exact steps are expected to take less time than ``inner`` conjugate gradients."""
    held = (rows.hinge() > 0).sum(1).double()
    exact = _STEPS * (held**3 / 3 / _FLOPS + held**2 * _GATHER + _CALL).sum()
    count = max(len(rows.y), 16)  # fewer rows do not take less time
    return float(exact) < inner * 4 * rows.z.numel() * count / _FLOPS


def support_newton(rows: Rows, gram: Gram, tolerance: float) -> bool:
    """Solve all rows in place.

    Args:
        rows: near the solution, so that few images have a positive hinge.
        gram: products of the images.
        tolerance: estimated distance to the least objective, relative to ½‖w‖², before the last step.

    Returns:
        False if a system is not definite in float32, for costs beyond all use; the rows are as near
        as they have come.
    """
    for _ in range(_MOST_STEPS):
        hinge = rows.hinge()
        beta = torch.zeros_like(rows.y)
        for q in range(len(beta)):
            held = hinge[q].nonzero().squeeze(1)
            system = gram.of(held)
            system.diagonal().add_(0.5 / (rows.cost[q] * rows.s[q, held]))
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed:
                rows.renew_pull()
                return False
            beta[q, held] = torch.cholesky_solve(rows.y[q, held, None], factor).squeeze(1)
        w = beta @ rows.z
        step, margin = w - rows.w, w @ rows.z.mT - rows.margin
        pulled = rows.s * hinge * rows.y
        slope = (rows.w * step).sum(1) - 2 * rows.cost.squeeze(1) * (pulled * margin).sum(1)
        near = -slope <= tolerance * rows.w.square().sum(1)
        rows.move(step, margin)
        if near.all():
            break
    rows.renew_pull()
    return True
