"""SimSiam with a moving average of each image's outputs (paper, section 5.2, "Expectation over augmentations")."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.methods.across import everyones
from pretrain.methods.method import HEAD_FIELDS, as_float, check_range
from pretrain.methods.simsiam import SimSiam


@dataclass(frozen=True)
class Options:
    """Settings of the moving average alone.

    Args:
        momentum: m of an image's average.
    """

    momentum: float = 0.8

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "momentum")


class MovingAverage(SimSiam):
    """Targets are averages over the views that an image ever had; meant without predictor.

    ``averages`` (images, d), the paper's eta, is the same in all processes. Outputs are normalised first
    (footnote 5 of the paper). A view's target is m eta + (1 - m) of the other view's output; what is kept
    takes the mean of both outputs. An image's first outputs are its first average.
    """

    label = "SimSiam, moving average"
    per_image = True
    uses = frozenset(HEAD_FIELDS) - {"symmetric", "stop_gradient"}
    Options = Options

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__(config, classes, images)
        self.averages: Tensor
        self.register_buffer("averages", torch.zeros(images, config.dim))
        self._fresh: list[tuple[Tensor, Tensor]] = []

    def forward(self, views: list[Tensor], labels: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The symmetrised loss of two views (N, 3, H, W) of images (N,) against their averages, and z1."""
        z1, z2 = (self.encode(view) for view in views)
        o1, o2 = (F.normalize(as_float(z.detach()), dim=1) for z in (z1, z2))
        t1, t2 = (self.moved(images, o) for o in (o1, o2))
        self._fresh.append((images, (o1 + o2) / 2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return self.distance(p1, t2) / 2 + self.distance(p2, t1) / 2, z1.detach()

    def moved(self, images: Tensor, outputs: Tensor) -> Tensor:
        """The averages of ``images`` (N,) with ``outputs`` (N, d) taken in."""
        kept = self.averages[images]
        m = self.options.momentum
        new = kept.any(1, keepdim=True).logical_not()
        return torch.where(new, outputs, m * kept + (1 - m) * outputs)

    @torch.no_grad()
    def after_update(self, done: int, total: int) -> None:
        """The step's images move their averages, in all processes."""
        for images, outputs in self._fresh:
            images, outputs = everyones(images), everyones(outputs)
            self.averages[images] = self.moved(images, outputs).to(self.averages.dtype)
        self._fresh = []
