"""The default solver: all SVMs on the same images at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval_lowshot.eigenbasis import PRODUCTS, Basis
from eval_lowshot.newton import solve
from eval_lowshot.solution import Solution
from eval_lowshot.support import Gram


@dataclass(frozen=True)
class Batched:
    """``--solver batched``.

    Attributes:
        basis: rotated features of both splits, on the device to work on.
    """

    basis: Basis

    def solve(self, rows: np.ndarray, y: np.ndarray, costs: Sequence[float]) -> Iterator[Solution]:
        """As :meth:`eval_lowshot.solution.Solver.solve`; the smaller costs come first."""
        at = torch.from_numpy(np.ascontiguousarray(rows)).to(self.basis.train.device)
        labels = torch.from_numpy(y.astype(np.float32)).to(at.device)
        images = self.basis.train[at]
        gram = self._gram(at, images)
        for costs_of, w in solve(images, self.basis.moments, labels, costs, gram):
            yield Solution(costs_of, w, (w @ images.mT).cpu().numpy())

    def test(self, weights: Sequence[Tensor]) -> np.ndarray:
        """As :meth:`eval_lowshot.solution.Solver.test`; float32."""
        return (torch.cat(list(weights)) @ self.basis.test.mT).cpu().numpy()  # type: ignore[no-any-return]

    def _gram(self, at: Tensor, images: Tensor) -> Gram | None:
        if self.basis.products is not None:
            return Gram(self.basis.products, at)
        if len(images) <= PRODUCTS:
            return Gram(images @ images.mT, torch.arange(len(at), device=at.device))
        return None
