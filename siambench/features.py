"""Features of a frozen backbone: decode, resize, crop, normalise, forward."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from siambench.data.images import decode
from siambench.progress import bar

Transform = Callable[[Image.Image], Tensor]


class ImageFiles(Dataset[Tensor]):
    """Decoded and transformed images; ``transform`` maps a PIL image to a uint8 tensor (3, H, W)."""

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(decode(self.paths[index]))


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
    shape = (1, 3, 1, 1)
    mean_t = torch.tensor(mean, device=images.device).view(shape)
    std_t = torch.tensor(std, device=images.device).view(shape)
    return (images - mean_t) / std_t


@torch.inference_mode()
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
    """Run ``forward`` over ``images`` in order.

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
    loader = DataLoader(images, batch_size, num_workers=workers, pin_memory=device.type == "cuda")
    out: np.ndarray | None = None
    with bar(title, count) as progress:
        start = 0
        for batch in loader:
            batch = normalise(batch.to(device, non_blocking=True), mean, std)
            rows = forward(batch.to(memory_format=torch.channels_last)).float().cpu().numpy()
            if out is None:
                out = np.empty((count, rows.shape[1]), np.float32)
            out[start : start + len(rows)] = rows
            start += len(rows)
            progress.advance(len(rows))
    assert out is not None, "no images"
    return out
