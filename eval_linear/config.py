"""What the linear probe and kNN take; the defaults are SimSiam's ImageNet protocol and DINO's grid."""

from dataclasses import dataclass, field
from typing import Literal

from siambench.config import EvaluationConfig


@dataclass
class LinearConfig(EvaluationConfig):
    """The linear probe: images in ImageNet's layout, one linear classifier per layer and rate.

    The learning rate of epoch e is base_lr × batch_size / 256, times (1 + cos(π e / epochs)) / 2
    under `cosine`, or times gamma for every milestone ≤ e under `step`. There is no warm-up, and
    what is reported is the classifier after the last epoch.

    Args:
        optimizer: lars (SGD on gradients scaled per tensor to 0.001 × weight norm) or sgd.
        base_lr: learning rate at batch 256; a list trains all of them in one pass and keeps the best
            on a held-out part of the training split.
        holdout: fraction of each training class that the choice among several rates is made on; the
            classifier that is reported has seen it, the one that the choice is made with has not.
        momentum: of SGD.
        weight_decay: L2, on weight and bias.
        nesterov: Nesterov's momentum.
        batch_size: images per step.
        epochs: passes over the training split.
        schedule: cosine or step, both per epoch.
        milestones: epochs (from 0) at which `step` multiplies the rate by gamma.
        gamma: factor of `step`.
        layers: avgpool, or several of feature1 ... feature5 and avgpool, each with its own head.
        batch_norm: normalise each channel before the head, without scale and shift (mmselfsup).
        resize: shorter side in pixels before the centre crop.
        crop: side in pixels of all crops.
        train_crop: resized (random size and shape) or random (a random place after resizing).
        min_scale: smallest area of a resized crop, as a fraction of the image.
        flip: mirror half of the training images (not for digits or letters).
        color_jitter: range of brightness, contrast and saturation jitter in training; 0 for none.
        lighting: standard deviation of AlexNet's PCA colour noise in training; 0 for none.
        road: online (images augmented anew in every epoch, as the papers do) or cached (features
            extracted once; epochs take seconds; a protocol of its own).
        views: augmented views per image that the cached road keeps beside the centre crop.
    """

    optimizer: Literal["lars", "sgd"] = "lars"
    base_lr: float | list[float] = 0.1
    holdout: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    batch_size: int = 4096
    epochs: int = 90
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    layers: list[str] = field(default_factory=lambda: ["avgpool"])
    batch_norm: bool = False
    resize: int = 256
    crop: int = 224
    train_crop: Literal["resized", "random"] = "resized"
    min_scale: float = 0.08
    flip: bool = True
    color_jitter: float = 0.0
    lighting: float = 0.0
    road: Literal["online", "cached"] = "online"
    views: int = 0

    @property
    def base_lrs(self) -> list[float]:
        """``base_lr`` as a list."""
        return self.base_lr if isinstance(self.base_lr, list) else [self.base_lr]


@dataclass
class KnnConfig(EvaluationConfig):
    """kNN: images in ImageNet's layout, pooled features, cosine similarity, votes exp(s / T).

    Args:
        k: numbers of neighbours; every k is combined with every temperature.
        temperature: temperatures T of the vote exp(s / T).
        resize: shorter side in pixels before the centre crop.
        crop: side in pixels of the centre crop.
    """

    k: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    temperature: list[float] = field(default_factory=lambda: [0.07, 0.2])
    resize: int = 256
    crop: int = 224


@dataclass
class PredictConfig:
    """Class and score of images, by a classifier that the linear probe saved.

    Args:
        images: images, or folders to search for them; also given by place.
        head: the head.safetensors of a finished linear probe (in OUT/jobs).
        backbone: the backbone the head was trained on, as a file or a name that `siambench convert`
            reads; by default where it was then.
        layer: which of the head's layers; by default avgpool if it has it, else its last.
        topk: likeliest classes per image in the JSON; all of them where there are fewer.
        device: auto, cpu, cuda or cuda:N.
        workers: loader processes; -1 for none for few images, else as the probe.
        skip_bad: leave out images that cannot be decoded instead of refusing.
    """

    images: list[str]
    head: str
    backbone: str = ""
    layer: str = ""
    topk: int = 5
    device: str = "auto"
    workers: int = -1
    skip_bad: bool = False
