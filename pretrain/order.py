"""Which images each process sees, and when: drawn from (seed, epoch), the same for any number of processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from siambench.errors import UserError


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """The batches of one process: lists of (epoch, image), from step ``start`` to the end of the run.

    A step takes the next ``batch_size`` images of its epoch's order; what is left of an epoch when no
    whole batch is, is dropped, as the official code does (facebookresearch/simsiam, main_simsiam.py,
    drop_last). The batch is cut into ``accumulate`` parts one after the other, and each part into one
    piece per process, so that a step sees the same images however it is cut.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        start: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.count, self.batch_size, self.epochs, self.seed = count, batch_size, epochs, seed
        self.start, self.accumulate, self.rank, self.size = start, accumulate, rank, size
        self.steps = count // batch_size  # per epoch

    def __len__(self) -> int:
        return (self.epochs * self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, skip = divmod(self.start, self.steps)
        for epoch in range(first, self.epochs):
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
            for step in range(skip, self.steps):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                for part in batch.reshape(self.accumulate, self.size, -1)[:, self.rank]:
                    yield [(epoch, int(image)) for image in part]
            skip = 0


def check_divides(batch_size: int, accumulate: int, size: int) -> None:
    """Refuse a batch that cannot be cut into equal pieces of two or more images.

    Raises:
        UserError: names the nearest batch sizes that can.
    """
    pieces = accumulate * size
    if batch_size % pieces == 0 and (batch_size // pieces >= 2 or pieces == 1):
        return
    below = batch_size // pieces * pieces
    nearest = " or ".join(str(b) for b in (below, below + pieces) if b >= 2 * pieces)
    raise UserError(
        f"--batch_size {batch_size} does not divide by processes x --accumulate = {size} x {accumulate} "
        f"= {pieces} into pieces of at least two images; the nearest that does is "
        f"{nearest or 2 * pieces}"
    )
