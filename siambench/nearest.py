"""The most similar rows of features that need not fit in memory: exact, and the same on every road.

What rounding decides, it decides differently in every matrix product. Neighbours nearer to each other
than that are therefore compared anew in float64, and equals are put in the order of their row numbers.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from siambench import shortlist
from siambench.errors import UserError
from siambench.search import (
    CPU,
    Rows,
    block_rows,
    search_cpu,
    search_faiss_gpu,
    search_torch,
    tolerance,
    unit_blocks,
)

Search = Literal["auto", "faiss", "torch", "shortlist"]

SPARE = 8  # neighbours beyond the k-th that every search finds, so that ties there can be settled
_SETTLE = 2**20  # numbers of rows that are compared anew at a time: 8 MiB


def nearest(
    train: Rows,
    queries: Rows,
    k: int,
    device: torch.device | None = None,
    search: Search = "auto",
    exclude_self: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of ``train`` most similar (cosine) to each query, most similar first.

    Among equally similar rows (duplicates) the lowest row number comes first, whatever the search. Only where more than ``SPARE`` rows beyond the k-th are as similar as it is,
    which of them are among the k is left to the search. A row of zeros has similarity 0.

    Args:
        train: features (N, D).
        queries: features (M, D).
        k: number of neighbours, from 1 to N (N - 1 with ``exclude_self``).
        device: where to search; None is the CPU.
        search: "faiss", "torch", or "shortlist" (bf16, then float32; CPUs only:
            :mod:`siambench.shortlist`). "auto" is faiss on a CPU, and on a GPU if faiss is built for
            it, else torch.
        exclude_self: queries are the rows of train, in order: leave each one's own row out, by its
            number; its duplicates stay.

    Returns:
        Similarities (M, k), float32, and row numbers (M, k), int64.

    Raises:
        UserError: features hold NaN or infinity, or the device cannot do this search.

    Example:
        >>> nearest(np.eye(3), np.array([[3.0, 2.0, 0.0]]), k=2)[1]
        array([[0, 1]])
    """
    device = device or CPU
    exact = _exact(search, device)
    need = k + exclude_self
    count = min(need + SPARE, len(train))
    similarity = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int64)

    def keep(own: np.ndarray, query: Tensor, s: np.ndarray, i: np.ndarray) -> None:
        if exclude_self:
            s, i = _without(own, s, i)
        s, i = _settled(train, query, s, i)
        similarity[own], index[own] = s[:, :k], i[:, :k]

    unsure = np.empty(0, np.int64)
    for start, query in unit_blocks(queries, device):
        own = np.arange(start, start + len(query))
        if search == "shortlist":
            s, i, sure = shortlist.search(train, query, need, count)
            unsure = np.append(unsure, own[~sure])
            keep(own[sure], query[torch.from_numpy(sure)], s[sure], i[sure])
        else:
            keep(own, query, *exact(train, query, count))
    for start in range(0, len(unsure), size := block_rows(queries, device)):
        own = unsure[start : start + size]
        (_, query) = next(unit_blocks(queries[own], device))
        keep(own, query, *exact(train, query, count))
    return similarity, index


def check_search(search: Search, device: torch.device) -> None:
    """Refuse, before any work, a search that the device cannot do.

    Raises:
        UserError: it cannot.
    """
    _exact(search, device)


def _exact(
    search: Search, device: torch.device
) -> Callable[[Rows, Tensor, int], tuple[np.ndarray, np.ndarray]]:
    """The exact search: for "shortlist", of what is searched again."""
    import faiss

    if device.type == "cpu":
        return search_torch if search == "torch" else search_cpu
    gpus = device.type == "cuda" and faiss.get_num_gpus() > 0
    if search == "shortlist":
        raise UserError('kNN: the bf16 shortlist is for CPUs; on a GPU choose the search "auto"')
    if search == "faiss" and not gpus:
        raise UserError(f'kNN: this faiss cannot use {device}; choose the search "auto" or "torch"')
    return search_torch if search == "torch" or not gpus else search_faiss_gpu


def _without(
    own: np.ndarray, similarity: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One neighbour less: the row itself, or the last where the row is not among them."""
    drop = index == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (len(own), index.shape[1] - 1)
    return similarity[~drop].reshape(shape), index[~drop].reshape(shape)


def _settled(
    train: Rows, query: Tensor, similarity: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours whose order rounding may have decided, in the order of float64 and row numbers."""
    near = similarity[:, :-1] - similarity[:, 1:] <= tolerance(train.shape[1])
    tied = np.zeros(similarity.shape, bool)
    tied[:, :-1] |= near
    tied[:, 1:] |= near
    which, place = np.nonzero(tied)
    queries = query.cpu().numpy()
    for start in range(0, len(which), step := max(1, _SETTLE // train.shape[1])):
        q, p = which[start : start + step], place[start : start + step]
        rows = train[index[q, p]].astype(np.float64)
        length = np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), 1e-12)
        similarity[q, p] = np.einsum("nd,nd->n", rows, queries[q], dtype=np.float64) / length
    some = np.flatnonzero(tied.any(axis=1))
    order = np.lexsort((index[some], -similarity[some]))
    similarity[some] = np.take_along_axis(similarity[some], order, 1)
    index[some] = np.take_along_axis(index[some], order, 1)
    return similarity, index
