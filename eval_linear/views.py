"""Training augmentation, drawn per (seed, draw, image) so that no loader setting changes a result."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from eval_linear.config import LinearConfig
from siambench.data.pictures import Images
from siambench.features import Transform

# Principal components of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012; these digits are
# those of Torch's and mmselfsup's Lighting).
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


class Lighting:
    """AlexNet's colour noise: uint8 (3, H, W) to unclipped float of the same scale (0 to 255)."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __repr__(self) -> str:
        return f"Lighting({self.std})"

    def __call__(self, image: Tensor) -> Tensor:
        shift = _EIGENVECTORS @ (torch.randn(3) * self.std * _EIGENVALUES)
        return image.float() + 255 * shift.view(3, 1, 1)


def train_transform(config: LinearConfig) -> Transform:
    """The training augmentation: crop, flip, colour jitter, lighting, each if the protocol has it."""
    steps: list[Transform | v2.Transform] = []
    if config.train_crop == "resized":
        steps.append(v2.RandomResizedCrop(config.crop, scale=(config.min_scale, 1.0)))
    else:
        square = [v2.Resize(config.resize), v2.CenterCrop(config.resize)]
        steps += [*square, v2.RandomCrop(config.crop)]
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.color_jitter:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    steps.append(v2.PILToTensor())
    if config.lighting:
        steps.append(Lighting(config.lighting))
    return v2.Compose(steps)


class RandomViews(Dataset[Tensor]):
    """Augmented images; item ``draw * len(images) + i`` is draw number ``draw`` of image i.

    A draw depends on the seed, its number and the image only: not on the order of the items nor on
    the number of worker processes. The length is that of one draw.
    """

    def __init__(self, images: Images, transform: Transform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> Tensor:
        draw, index = divmod(item, len(self.images))
        image = self.images[index]
        seed = np.random.SeedSequence([self.seed, draw, index]).generate_state(1, np.uint64)[0]
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(int(seed))  # torchvision draws from the global one
        try:
            return self.transform(image)
        finally:
            torch.set_rng_state(before)

    def draw(self, number: int) -> "OneDraw":
        """One draw of every image."""
        return OneDraw(self, number)


class OneDraw(Dataset[Tensor]):
    """Draw number ``number`` of every image; see :class:`RandomViews`."""

    def __init__(self, views: RandomViews, number: int) -> None:
        self.views, self.number = views, number

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Tensor:
        return self.views[self.number * len(self.views) + index]

    def name(self, index: int) -> str:
        """Path or number of an image."""
        return self.views.images.name(index)

    def key(self) -> list[str | int]:
        """Of the images, the augmentation, the seed and the draw."""
        views = self.views
        return [views.images.stamp(), repr(views.transform), views.seed, self.number]
