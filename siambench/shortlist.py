"""Neighbours, most of the work in bf16: a shortlist, scored anew in float32, and shown to be whole.

Faster where the processor multiplies bf16 matrices (AVX512-BF16, AMX), slower where it does not.

With m near the mean of the training rows, q·x = q'·x' + m·x + m·q' for q' = q - m and x' = x - m. Only
the product q'·x' is bf16: it is small, so that its rounding does little harm. How much a row that is
not on the list may gain by rounding is bounded by

* its factors' rounding: each number errs by at most 2^-8 of itself. So that no pattern in the features is
  rounded alike, each dimension is first scaled by a random factor between 1 and 2, up in q' and down in
  x': errors are then independent and as good as without bias, and their sum over the dimensions is above
  z 2^-7.5 |q'|₄ |x'|₄ with a probability below exp(-z²/2) (Hoeffding; the sum of q'²x'² is at most
  |q'|₄²|x'|₄²), 1e-14 for a pair at z = 8. Products of two errors add at most 2^-16 |q'||x'|.
* its product's rounding: at most 2^-8 of it, and what the product can be is known, as with m·x it was
  not enough for the list. A negative one leaves the row below m·x.
* float32 sums: the search's own tolerance.

A query whose k-th similarity is not above all that a row left out could have is searched again.
"""

import numpy as np
import torch
from torch import Tensor

from siambench.search import CPU, Heaps, Rows, parts, tolerance, unit_blocks

_SAMPLE = 1024  # rows that m is the mean of
_Z = 8.0
_PIECE = 64  # queries at a time from the product to the heaps: what the cache holds


def search(
    train: Rows, query: Tensor, need: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``count`` most similar rows, of which the first ``need`` are sure where it says so.

    Args:
        train: features (N, D).
        query: unit rows (M, D), float32, on the CPU.
        need, count: ``need`` <= ``count`` <= N.

    Returns:
        Similarities (M, count), float32, highest first; row numbers (M, count); and whether no row
        that was left out can be among the first ``need`` (M,), bool.
    """
    length = min(len(train), count + max(32, need // 8))
    mean = _centre(train)
    centred = query - mean
    scale = torch.rand(len(mean), generator=torch.Generator().manual_seed(0)).exp2_()
    size, offset, low = _norm4(centred), centred @ mean, centred.mul_(scale).bfloat16()
    del centred
    heaps = Heaps(len(query), length)
    largest, lowest, highest = 0.0, torch.inf, -torch.inf  # of |x'|₄, and of m·x
    for row, block in unit_blocks(train, CPU):
        level = block @ mean
        largest = max(largest, float(_norm4(block.sub_(mean)).max()))
        low_block = block.div_(scale).bfloat16()
        for part in parts(len(query), len(block), CPU):
            products = low[part] @ low_block.T
            for first in range(0, len(products), _PIECE):
                piece = products[first : first + _PIECE]
                sums = heaps.room(*piece.shape)
                torch.add(level, piece, out=torch.from_numpy(sums))
                heaps.add(sums, part.start + first, row)
        lowest, highest = min(lowest, float(level.min())), max(highest, float(level.max()))
    listed, index = heaps.sorted()
    last = torch.from_numpy(listed[:, -1])
    left_out = (last + (last - lowest).clamp_min(0) * 2**-7.9).clamp_min(highest)
    factors = _Z * 2**-7.5 * largest * size + 2**-14  # |q'| and |x'| are at most 2
    beaten = left_out + offset + factors + 2 * tolerance(train.shape[1])
    similarity = _rescored(train, query.numpy(), index)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    similarity = np.take_along_axis(similarity, order, 1)
    index = np.take_along_axis(index, order, 1)
    certain = (similarity[:, need - 1] > beaten.numpy()) | (length == len(train))
    return similarity, index, certain


def _centre(train: Rows) -> Tensor:
    """The mean (D,) of some of the rows at length 1."""
    sample = train[np.linspace(0, len(train) - 1, min(_SAMPLE, len(train))).astype(int)]
    return next(unit_blocks(sample, CPU))[1].mean(0)


def _norm4(rows: Tensor) -> Tensor:
    """|x|₄ of each row."""
    norms = [torch.linalg.vector_norm(some.square(), dim=1) for some in torch.split(rows, 128)]
    return torch.cat(norms).sqrt_()


def _rescored(train: Rows, query: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Similarities, float32, of each query to the rows of its list."""
    out = np.empty(index.shape, np.float32)
    for number, near in enumerate(index):
        rows = torch.from_numpy(train[near].astype(np.float32, copy=False))
        length = torch.linalg.vector_norm(rows, dim=1).clamp_min_(1e-12)
        out[number] = (rows @ torch.from_numpy(query[number]) / length).numpy()
    return out
