"""The state of many SVMs on the same images: weights, margins, gradient, and a step along a line."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POSITIVE_WEIGHT = 2.0  # class_weight={1: 2, -1: 1}
STILL = 1e-10  # squared length of a step, relative to the weights', that is rounding


@dataclass
class Rows:
    """Q SVMs on the same n images, one a row.

    Attributes:
        z: (n, r) features.
        y: (Q, n) of 1, -1 and 0 (left out).
        cost: (Q, 1).
        w: (Q, r), the present weights.
        margin: (Q, n), w zᵀ.
        pull: (Q, r), Σ sᵢ yᵢ hingeᵢ zᵢ, so that the gradient is w - 2 cost pull.
    """

    z: Tensor
    y: Tensor
    cost: Tensor
    w: Tensor
    margin: Tensor
    pull: Tensor

    def __post_init__(self) -> None:
        self.s = _weights(self.y)

    @classmethod
    def at_zero(cls, z: Tensor, y: Tensor) -> "Rows":
        """Weights of 0, where the hinge of every image is 1; the cost is 1."""
        w = z.new_zeros(len(y), z.shape[1])
        return cls(z, y, z.new_ones(len(y), 1), w, torch.zeros_like(y), (_weights(y) * y) @ z)

    def with_costs(self, costs: Sequence[float]) -> "Rows":
        """The rows once for each cost, the rows of one cost together."""
        count = len(costs)
        cost = self.z.new_tensor(costs).repeat_interleave(len(self.y)).unsqueeze(1)
        w, margin, pull = (part.repeat(count, 1) for part in (self.w, self.margin, self.pull))
        return Rows(self.z, self.y.repeat(count, 1), cost, w, margin, pull)

    def take(self, chosen: Tensor | slice) -> "Rows":
        """A copy of some of the rows."""
        parts = (self.y, self.cost, self.w, self.margin, self.pull)
        return Rows(self.z, *(part[chosen] for part in parts))

    def put(self, chosen: Tensor, solved: "Rows") -> None:
        """Take over the solutions of ``take(chosen)``."""
        if solved is not self:
            self.w[chosen], self.margin[chosen] = solved.w, solved.margin
            self.pull[chosen] = solved.pull

    def hinge(self) -> Tensor:
        """(Q, n): max(0, 1 - y margin), and 0 for what is left out."""
        return (1 - self.y * self.margin).clamp_(min=0).mul_(self.s != 0)

    def renew_pull(self) -> None:
        """Compute ``pull`` anew."""
        self.pull = (self.s * self.y * self.hinge()) @ self.z

    def move(self, step: Tensor, margin: Tensor) -> Tensor:
        """Go along ``step`` (Q, r), which changes the margins by ``margin``, to the lowest point.

        Returns:
            (Q, 1): how far, in steps. ``pull`` is not renewed.
        """
        slope = (self.w * step).sum(1, keepdim=True)
        bend = step.square().sum(1, keepdim=True)
        gap, change = 1 - self.y * self.margin, self.y * margin
        t = torch.ones_like(slope)
        for _ in range(12):  # along a line the objective is convex and piecewise quadratic
            hinge = gap - t * change
            pulled = self.s * (hinge > 0) * change
            first = slope + t * bend - 2 * self.cost * (pulled * hinge).sum(1, keepdim=True)
            second = bend + 2 * self.cost * (pulled * change).sum(1, keepdim=True)
            correction = first / second.clamp_(min=1e-30)
            t -= correction
            if correction.abs().max() < 1e-3:
                break
        t.clamp_(0, 2)  # a step that is but rounding has no length
        self.w += t * step
        self.margin += t * margin
        return t


def _weights(y: Tensor) -> Tensor:
    return torch.where(y > 0, POSITIVE_WEIGHT, y.abs())
