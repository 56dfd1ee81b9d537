"""The order of the images: drawn from (seed, epoch)."""

import numpy as np
from torch.utils.data import Sampler


class EpochOrder(Sampler[tuple[int, int]]):
    """(epoch, image) in an order drawn from (seed, epoch); call :meth:`set_epoch` first."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self):  # type: ignore[no-untyped-def]
        order = np.random.default_rng([self.seed, 0, self.epoch]).permutation(self.count)
        return iter((self.epoch, int(i)) for i in order)
