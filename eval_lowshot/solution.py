"""What both solvers can do: train SVMs for many costs, and score the test split with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Solution:
    """P SVMs on the same n images, for some of the costs.

    Attributes:
        costs: indices of those costs, g of them.
        weights: (g, P, ...), for the solver's ``test``.
        scores: (g, P, n) decision values of the training images, those left out among them.
    """

    costs: list[int]
    weights: Any
    scores: np.ndarray


class Solver(Protocol):
    """Trains LinearSVC's problems on the features that it was made with."""

    def solve(self, rows: np.ndarray, y: np.ndarray, costs: Sequence[float]) -> Iterator[Solution]:
        """Train P SVMs on the same images with every cost.

        Args:
            rows: (n,) of the training split.
            y: (P, n) of 1, -1 and 0 (left out); each row has both a 1 and a -1.
            costs: values of C.
        """
        ...

    def test(self, weights: Sequence[Any]) -> np.ndarray:
        """Decision values (Q, M) of the test split, for weights of (q, ...) each, Q rows in all."""
        ...
