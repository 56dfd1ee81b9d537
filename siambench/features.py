"""Features of a frozen backbone: decode, resize, crop, normalise, forward, pool."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from siambench.backbone import Backbone
from siambench.data.pictures import Images
from siambench.pooling import LAYERS, pool_layer
from siambench.progress import bar
from siambench.signals import leave_to_parent

Transform = Callable[[Image.Image], Tensor]


class Pictures(Protocol):
    """What features are extracted of: uint8 tensors (3, H, W) of one size, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def name(self, index: int) -> str:
        """Which picture it is, for messages."""
        ...

    def key(self) -> list[str | int]:
        """Changes when a picture, their order or their preparation may have changed."""
        ...


class ImageFiles(Dataset[Tensor]):
    """Transformed images; ``transform`` maps a PIL image to a uint8 tensor (3, H, W)."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])

    def name(self, index: int) -> str:
        """Path or number of an image."""
        return self.images.name(index)

    def key(self) -> list[str | int]:
        """Of the images and the transform, whose ``repr`` tells all of its settings."""
        return [self.images.stamp(), repr(self.transform)]


def center_crop_transform(resize: int, crop: int) -> Transform:
    """The literature's test transform: shorter side to ``resize`` (bilinear, antialiased), centre crop.

    256 and 224 for ImageNet (facebookresearch/simsiam, main_lincls.py).
    """
    return v2.Compose([v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor()])


def squash_transform(size: int) -> Transform:
    """Resize to ``size`` × ``size`` without keeping the aspect ratio (the VOC07 SVM protocols)."""
    return v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images (N, 3, H, W) to float32 with ``mean`` and ``std`` (of [0, 1]) taken out."""
    return standardise(images.float() / 255, mean, std)


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float images (N, 3, H, W) in [0, 1] with ``mean`` and ``std`` taken out."""
    mean_t, std_t = _moments(tuple(mean), tuple(std), images.device)
    return (images - mean_t) / std_t


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _moments(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Each (1, 3, 1, 1), made once: making one in every step would let the host wait for its GPU."""
    shape = (1, 3, 1, 1)
    return torch.tensor(mean, device=device).view(shape), torch.tensor(std, device=device).view(
        shape
    )


class LayerFeatures:
    """Normalised images (N, 3, H, W) to the pooled features of several layers, side by side.

    Args:
        backbone: on the device that computes.
        layers: some of :data:`siambench.pooling.LAYERS`.
        size: side of the images in pixels.
        precision: ``"float32"``, or ``"bf16"`` to convolve in bfloat16 (autocast).

    Attributes:
        dims: length of each layer's features.
        channels: channels of each layer's map.
        device: the backbone's.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[str], size: int, precision: str = "float32"
    ) -> None:
        self.backbone, self.layers, self.precision = backbone, list(layers), precision
        self.device = next(backbone.parameters()).device
        with torch.no_grad():
            maps = backbone.stages(torch.zeros(1, 3, size, size, device=self.device))
            self.dims = [pool_layer(maps, layer).shape[1] for layer in self.layers]
        last = len(maps) - 1  # avgpool is pooled from feature5's map
        self.channels = [maps[min(LAYERS.index(layer), last)].shape[1] for layer in self.layers]

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (N, D)."""
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            maps = self.backbone.stages(images)
        return torch.cat([pool_layer(maps, layer) for layer in self.layers], 1)


@torch.no_grad()
def normalised_batches(
    images: Dataset[Tensor],
    batches: Iterable[Sequence[int]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    workers: int,
) -> Iterator[Tensor]:
    """Batches of ``images`` by number as the network takes them: normalised, channels last, on ``device``.

    Args:
        images: uint8 tensors (3, H, W) of one size.
        batches: the numbers of each batch; asked for as the loaders need them.
        mean, std: the backbone's.
        device: where they go.
        workers: loader processes, which decode ahead.
    """
    loader = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_to_parent,
    )
    for batch in loader:
        batch = normalise(batch.to(device, non_blocking=True), mean, std)
        yield batch.to(memory_format=torch.channels_last)


@torch.no_grad()
def extract(
    forward: Callable[[Tensor], Tensor],
    images: Dataset[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
    title: str = "features",
) -> np.ndarray:
    """Run ``forward`` over ``images`` in order, into memory.

    Args:
        forward: normalised images (N, 3, H, W) on ``device`` to features (N, D).
        images: uint8 tensors (3, H, W) of one size, e.g. :class:`ImageFiles`.
        mean, std: the backbone's.
        device: where ``forward`` lives.
        batch_size: images per forward pass.
        workers: loader processes.
        title: of the progress bar; empty for none.

    Returns:
        float32 features (len(images), D).
    """
    count = len(images)  # type: ignore[arg-type]
    assert count, "no images"
    batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    out = np.empty((0, 0), np.float32)
    with bar(title, count) as progress:
        inputs = normalised_batches(
            images, batches, mean=mean, std=std, device=device, workers=workers
        )
        for batch, pixels in zip(batches, inputs, strict=True):
            rows = forward(pixels).float().cpu().numpy()
            if not out.size:
                out = np.empty((count, rows.shape[1]), np.float32)
            out[batch.start : batch.stop] = rows
            progress.advance(len(batch))
    return out
