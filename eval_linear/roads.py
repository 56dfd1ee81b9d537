"""Two roads from images to training features: augmented anew every epoch, or from the cache.

Both offer ``train(epoch, batches)`` and ``center(split, batches)``, which yield the features (N, D)
of one batch of image numbers after the other, on the job's device.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval_linear.config import LinearConfig
from eval_linear.views import RandomViews, train_transform
from siambench.cache import cached_features
from siambench.data.classification import Classification
from siambench.evaluation import Job
from siambench.features import (
    ImageFiles,
    LayerFeatures,
    Pictures,
    center_crop_transform,
    normalised_batches,
)

_FORWARD = 256  # images per forward pass: in evaluation mode the result does not depend on it

Batches = Sequence[np.ndarray]


class Online:
    """The papers' road: images are decoded and augmented in every epoch.

    Under torchrun each process takes its part of every batch, and all of them get the whole batch's
    features: every process then takes the same step, and a norm sees the whole batch.
    """

    def __init__(
        self, encoder: LayerFeatures, data: Classification, config: LinearConfig, job: Job
    ) -> None:
        self.encoder, self.job = encoder, job
        center = center_crop_transform(config.resize, config.crop)
        self._center = {
            "train": ImageFiles(data.train.images, center),
            "test": ImageFiles(data.test.images, center),
        }
        self._train = RandomViews(data.train.images, train_transform(config), job.seed)

    def train(self, epoch: int, batches: Batches) -> Iterator[Tensor]:
        """Features of a draw of augmented views; draw number ``epoch``."""
        return self._stream(self._train, [batch + epoch * len(self._train) for batch in batches])

    def center(self, split: str, batches: Batches) -> Iterator[Tensor]:
        """Features of the centre crops of ``"train"`` or ``"test"``."""
        return self._stream(self._center[split], batches)

    @torch.no_grad()
    def _stream(self, images: Dataset[Tensor], batches: Batches) -> Iterator[Tensor]:
        world, meta = self.job.world, self.encoder.backbone.meta
        shares = [np.array_split(batch, world.size) for batch in batches]
        mine = [share[world.rank] for share in shares]
        parts = [np.array_split(part, math.ceil(len(part) / _FORWARD) or 1) for part in mine]
        inputs = normalised_batches(
            images,
            [part.tolist() for split in parts for part in split if len(part)],
            mean=meta.mean,
            std=meta.std,
            device=self.job.device,
            workers=self.job.workers,
        )
        none = torch.empty(0, sum(self.encoder.dims), device=self.job.device)
        for share, split in zip(shares, parts, strict=True):
            rows = [self.encoder(next(inputs)) for part in split if len(part)]
            yield world.gather(torch.cat([none, *rows]), [len(part) for part in share])


class Cached:
    """The short road: each image's centre crop and ``views`` augmented views, extracted once.

    In every epoch an image shows one of its 1 + ``views`` features, drawn at random. On a GPU with
    room for them the features stay there.
    """

    def __init__(
        self, encoder: LayerFeatures, data: Classification, config: LinearConfig, job: Job
    ) -> None:
        self.job = job
        center = center_crop_transform(config.resize, config.crop)
        drawn = RandomViews(data.train.images, train_transform(config), job.seed)
        pictures: dict[str, Pictures] = {
            "train": ImageFiles(data.train.images, center),
            "test": ImageFiles(data.test.images, center),
        }
        views = [f"train-view{view + 1}" for view in range(config.views)]
        pictures |= {name: drawn.draw(view) for view, name in enumerate(views)}
        tables = cached_features(encoder, pictures, config.storage, job)
        room = torch.cuda.mem_get_info(job.device)[0] / 2 if job.device.type == "cuda" else 0
        fits = sum(table.nbytes for table in tables.values()) < room
        self._where = job.device if fits else torch.device("cpu")
        self._of = {
            name: [
                torch.from_numpy(tables[name, layer]).to(self._where) for layer in encoder.layers
            ]
            for name in pictures
        }
        self._views = ["train", *views]

    def train(self, epoch: int, batches: Batches) -> Iterator[Tensor]:
        """Features of one view of each image, drawn for this epoch."""
        rng = np.random.default_rng([self.job.seed, 1, epoch])
        pick = rng.integers(len(self._views), size=len(self._of["train"][0]))
        for batch in batches:
            if len(self._views) == 1:
                yield self._rows("train", batch)
                continue
            order = np.argsort(pick[batch], kind="stable")
            counts = np.bincount(pick[batch], minlength=len(self._views))
            groups = np.split(batch[order], counts.cumsum()[:-1])
            rows = torch.cat([self._rows(v, g) for v, g in zip(self._views, groups, strict=True)])
            yield rows[torch.from_numpy(np.argsort(order)).to(rows.device)]

    def center(self, split: str, batches: Batches) -> Iterator[Tensor]:
        """Features of the centre crops of ``"train"`` or ``"test"``."""
        for batch in batches:
            yield self._rows(split, batch)

    def _rows(self, name: str, numbers: np.ndarray) -> Tensor:
        index = torch.from_numpy(numbers).to(self._where)
        parts = [table[index].to(self.job.device).float() for table in self._of[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
