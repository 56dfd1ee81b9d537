"""Two roads from images to training features: augmented anew every epoch, or extracted once.

Both offer ``train(epoch, batches)`` and ``center(split, batches)``, which yield the features (N, D)
of one batch of image numbers after the other, on the job's device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from eval_linear.config import LinearConfig
from eval_linear.folders import Folders
from eval_linear.views import RandomViews, train_transform
from siambench.backbone import Backbone
from siambench.evaluation import Job
from siambench.features import ImageFiles, center_crop_transform, extract, normalise
from siambench.files import atomic_path
from siambench.pooling import LAYERS, pool_layer

_FORWARD = 256  # images per forward pass: in evaluation mode the result does not depend on it

Batches = Sequence[np.ndarray]


class LayerFeatures:
    """Normalised images (N, 3, H, W) to the pooled features of several layers, side by side.

    Attributes:
        dims: length of each layer's features.
        channels: channels of each layer's map.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[str], crop: int) -> None:
        self.backbone, self.layers = backbone, list(layers)
        device = next(backbone.parameters()).device
        with torch.no_grad():
            maps = backbone.stages(torch.zeros(1, 3, crop, crop, device=device))
            self.dims = [pool_layer(maps, layer).shape[1] for layer in self.layers]
        last = len(maps) - 1  # avgpool is pooled from feature5's map
        self.channels = [maps[min(LAYERS.index(layer), last)].shape[1] for layer in self.layers]

    def __call__(self, images: Tensor) -> Tensor:
        maps = self.backbone.stages(images)
        return torch.cat([pool_layer(maps, layer) for layer in self.layers], 1)


class Online:
    """The papers' road: images are decoded and augmented in every epoch."""

    def __init__(
        self, encoder: LayerFeatures, data: Folders, config: LinearConfig, job: Job
    ) -> None:
        self.encoder, self.job = encoder, job
        center = center_crop_transform(config.resize, config.crop)
        self._center = {s: ImageFiles(data.paths(s), center) for s in ("train", "val")}
        self._train = RandomViews(data.paths("train"), train_transform(config), job.seed)

    def train(self, epoch: int, batches: Batches) -> Iterator[Tensor]:
        """Features of a draw of augmented views; draw number ``epoch``."""
        return self._stream(self._train, [batch + epoch * len(self._train) for batch in batches])

    def center(self, split: str, batches: Batches) -> Iterator[Tensor]:
        """Features of the centre crops of ``"train"`` or ``"val"``."""
        return self._stream(self._center[split], batches)

    @torch.no_grad()
    def _stream(self, images: Dataset[Tensor], batches: Batches) -> Iterator[Tensor]:
        parts = [np.array_split(batch, math.ceil(len(batch) / _FORWARD)) for batch in batches]
        device, meta = self.job.device, self.encoder.backbone.meta
        loader = iter(
            DataLoader(
                images,
                batch_sampler=[part.tolist() for split in parts for part in split],
                num_workers=self.job.workers,
                pin_memory=device.type == "cuda",
            )
        )

        def forward(x: Tensor) -> Tensor:
            x = normalise(x.to(device, non_blocking=True), meta.mean, meta.std)
            return self.encoder(x.to(memory_format=torch.channels_last))

        for split in parts:
            yield torch.cat([forward(next(loader)) for _ in split])


class Cached:
    """The short road: each image's centre crop and ``views`` augmented views, extracted once.

    In every epoch an image shows one of its 1 + ``views`` features, drawn at random.
    """

    def __init__(
        self, encoder: LayerFeatures, data: Folders, config: LinearConfig, job: Job
    ) -> None:
        self.job = job
        meta = encoder.backbone.meta

        def features(name: str, images: Dataset[Tensor]) -> np.ndarray:
            return stored(
                job.folder / f"features-{name}.npy",
                lambda: extract(
                    encoder,
                    images,
                    mean=meta.mean,
                    std=meta.std,
                    device=job.device,
                    workers=job.workers,
                    title=f"{job.title}: features of {name}",
                ),
            )

        center = center_crop_transform(config.resize, config.crop)
        self._center = {s: features(s, ImageFiles(data.paths(s), center)) for s in ("train", "val")}
        self._views = [self._center["train"]]
        drawn = RandomViews(data.paths("train"), train_transform(config), job.seed)
        for view in range(config.views):
            items = range(view * len(drawn), (view + 1) * len(drawn))
            self._views.append(features(f"train-view{view + 1}", Subset(drawn, items)))

    def train(self, epoch: int, batches: Batches) -> Iterator[Tensor]:
        """Features of one view of each image, drawn for this epoch."""
        rng = np.random.default_rng([self.job.seed, 1, epoch])
        pick = rng.integers(len(self._views), size=len(self._views[0]))
        for batch in batches:
            rows = np.empty((len(batch), self._views[0].shape[1]), np.float32)
            for number, view in enumerate(self._views):
                of_view = pick[batch] == number
                rows[of_view] = view[batch[of_view]]
            yield torch.from_numpy(rows).to(self.job.device)

    def center(self, split: str, batches: Batches) -> Iterator[Tensor]:
        """Features of the centre crops of ``"train"`` or ``"val"``."""
        for batch in batches:
            yield torch.from_numpy(self._center[split][batch]).to(self.job.device)


def stored(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array at ``path``, memory-mapped; made and written atomically when it is not there."""
    if not path.exists():
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, make())
    return np.load(path, mmap_mode="r")


def discard_stored(folder: Path) -> None:
    """Remove the arrays that :func:`stored` made in ``folder``, whole or unfinished."""
    for path in [*folder.glob("features-*.npy"), *folder.glob(".features-*.tmp")]:
        path.unlink()
