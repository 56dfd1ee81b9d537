"""Exact search block by block: numpy and faiss on a CPU, torch on a GPU, or a faiss built for GPUs.

Rows are read, brought to length 1 and compared block by block, so that beyond its input a search holds
two blocks, the products of some queries with some rows, and its answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from siambench.errors import UserError

CPU = torch.device("cpu")
_BLOCK, _GPU_BLOCK = 2**22, 2**28  # floats in a block of rows: 16 MiB, 1 GiB
_LONGEST = 2**17  # rows in a block of short rows
_PRODUCTS, _GPU_PRODUCTS = 2**22, 2**27  # similarities at a time: 16 MiB, 512 MiB


class Rows(Protocol):
    """Features (N, D) of any float type, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The rows of a slice or of an array of row numbers."""


def unit_blocks(rows: Rows, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Each block's first row number and its rows at length 1, float32; rows of zeros stay zero.

    On a CPU every block has the same memory: be done with one before taking the next.

    Raises:
        UserError: a row holds NaN or infinity.
    """
    size = min(block_rows(rows, device), len(rows))
    buffer = torch.empty(size, rows.shape[1])
    for start in range(0, len(rows), size):
        part = buffer[: len(rows) - start]
        np.copyto(part.numpy(), rows[start : start + size], casting="same_kind")
        block = part.to(device)
        length = torch.linalg.vector_norm(block, dim=1, keepdim=True)
        if not length.isfinite().all():
            raise UserError("kNN: features hold NaN or infinity; the backbone is not sound")
        yield start, block.div_(length.clamp_min_(1e-12))


def block_rows(rows: Rows, device: torch.device) -> int:
    """Rows in a block."""
    floats = _BLOCK if device.type == "cpu" else _GPU_BLOCK
    return max(1, min(_LONGEST, floats // rows.shape[1]))


def parts(queries: int, rows: int, device: torch.device) -> Iterator[slice]:
    """Slices of the queries so short that their products with ``rows`` rows fit."""
    products = _PRODUCTS if device.type == "cpu" else _GPU_PRODUCTS
    step = max(1, products // rows)
    return (slice(first, min(first + step, queries)) for first in range(0, queries, step))


def tolerance(dimensions: int) -> float:
    """Two float32 similarities that differ by no more than this may be in either order.

    Twice what rounding was seen to do to one by numpy, MKL and their products with a single vector,
    for 16 to 8,192 dimensions: up to 8.7e-7 for 2,048, where this is 2.3e-6. Part is the rows' own
    rounding; part, that of sums, grows like a random walk.
    """
    return float(2**-20 + dimensions**0.5 * 2**-25)


class Heaps:
    """The ``count`` highest of each query's similarities so far, in faiss's heaps."""

    def __init__(self, queries: int, count: int) -> None:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        self.pointer = faiss.swig_ptr
        self.best = faiss.ResultHeap(queries, count, keep_max=True)
        self.memory = np.empty(0, np.float32)

    def room(self, queries: int, rows: int) -> np.ndarray:
        """An array (queries, rows) for the next products, in the same memory each time."""
        if self.memory.size < queries * rows:
            self.memory = np.empty(queries * rows, np.float32)
        return self.memory[: queries * rows].reshape(queries, rows)

    def add(self, products: np.ndarray, query: int, row: int) -> None:
        """Similarities of the queries from number ``query`` on to the rows from ``row`` on."""
        queries, rows = products.shape
        self.best.heaps.addn(rows, self.pointer(products), row, query, queries)

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Similarities, highest first, and row numbers."""
        self.best.finalize()
        return self.best.D, self.best.I


def search_cpu(train: Rows, query: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows of ``train`` most similar to each of ``query``.

    numpy's product with faiss's heaps is as fast as faiss's own search of normalised features, needs
    no copy of them, and unlike ``faiss.knn`` keeps what it knows from block to block.

    Args:
        train: features (N, D).
        query: unit rows (M, D), float32, on the CPU.
        count: at most N.

    Returns:
        Similarities (M, count), float32, highest first, and row numbers (M, count), int64.
    """
    heaps, queries = Heaps(len(query), count), query.numpy()
    with threadpool_limits(torch.get_num_threads(), "blas"):
        for row, block in unit_blocks(train, CPU):
            for part in parts(len(query), len(block), CPU):
                products = heaps.room(part.stop - part.start, len(block))
                np.matmul(queries[part], block.numpy().T, out=products)
                heaps.add(products, part.start, row)
    return heaps.sorted()


def search_torch(train: Rows, query: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`search_cpu` with torch's matmul and topk, on the device of ``query``."""
    best = query.new_full((len(query), count), -torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    for row, block in unit_blocks(train, query.device):
        for part in parts(len(query), len(block), query.device):
            with _all_of_float32(query.device):
                products = query[part] @ block.T
            found, rows = products.topk(min(count, len(block)))
            found = torch.cat([best[part], found], 1)
            rows = torch.cat([index[part], rows + row], 1)
            best[part], order = found.topk(count)
            index[part] = rows.gather(1, order)
    return best.cpu().numpy(), index.cpu().numpy()


def search_faiss_gpu(train: Rows, query: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`search_cpu` with a faiss built for GPUs, on the device of ``query``."""
    import faiss

    resources, queries = faiss.StandardGpuResources(), query.cpu().numpy()
    heaps = Heaps(len(query), count)
    for row, block in unit_blocks(train, CPU):
        similarity, index = faiss.knn_gpu(
            resources,
            queries,
            block.numpy(),
            min(count, len(block)),
            metric=faiss.METRIC_INNER_PRODUCT,
            device=query.device.index or 0,
        )
        heaps.best.add_result(similarity, index + row)
    return heaps.sorted()


@contextmanager
def _all_of_float32(device: torch.device) -> Iterator[None]:
    """Matrix products neither in TF32, where someone allowed it, nor in autocast's type."""
    matmul: Any = torch.backends.cuda.matmul
    new = hasattr(matmul, "fp32_precision")  # since torch 2.9
    name, tf32, full = ("fp32_precision", "tf32", "ieee") if new else ("allow_tf32", True, False)
    before = getattr(matmul, name)
    if before == tf32:
        setattr(matmul, name, full)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before == tf32:
            setattr(matmul, name, before)
