"""What the linear probe, kNN and predict take."""

from dataclasses import dataclass, field
from typing import Literal

from siambench.config import FeatureConfig


@dataclass
class LinearConfig(FeatureConfig):
    """The linear probe: one linear classifier per layer and setting on a frozen backbone.

    The defaults are the short road for development: cached features and a sweep of ten learning
    rates, all trained in one pass. Published protocols are presets.

    The learning rate of epoch e is base_lr × batch_size / 256, times (1 + cos(π e / epochs)) / 2
    under `cosine`, or times gamma for every milestone ≤ e under `step`. There is no warm-up, and
    what is reported is the classifier after the last epoch. Images with several labels (VOC07) have a
    sigmoid per class instead of a softmax, and are scored by mean average precision.

    Args:
        optimizer: sgd, or lars (SGD on gradients scaled per tensor to 0.001 × weight norm).
        base_lr: learning rate at batch 256; of a list, all are trained in one pass and the best on a
            held-out part of the training split is kept.
        weight_decay: L2, on weight and bias; a list is swept like base_lr, in all pairs with it.
        holdout: fraction of each training class (of all images where they have several labels) that
            the choice among several settings is made on;
            the classifier that is reported has seen it, the one that the choice is made with has not.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        batch_size: images per step, over all processes.
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
        road: cached (features extracted once; epochs take seconds; a protocol of its own) or online
            (images augmented anew in every epoch, as the papers do).
        views: augmented views per image that the cached road keeps beside the centre crop.
        download: let torchvision fetch the data set that `--data torchvision:NAME` names.
    """

    optimizer: Literal["lars", "sgd"] = "sgd"
    base_lr: float | list[float] = field(
        default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    )
    weight_decay: float | list[float] = 0.0
    holdout: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    batch_size: int = 256
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
    road: Literal["online", "cached"] = "cached"
    views: int = 0
    download: bool = False

    @property
    def settings(self) -> list[tuple[float, float]]:
        """All pairs (base_lr, weight_decay), in order: a head each."""
        decays = _listed(self.weight_decay)
        return [(rate, decay) for rate in _listed(self.base_lr) for decay in decays]

    def idle(self) -> set[str]:
        """Augmentation without augmented views, storage without a cache, and their like."""
        if self.road == "online":
            names = {"views", "storage"}
        else:
            names = set() if self.views else set(_AUGMENTATION)
        names |= {"min_scale"} if self.train_crop == "random" else set()
        names |= {"milestones", "gamma"} if self.schedule == "cosine" else set()
        return names | ({"holdout"} if len(self.settings) == 1 else set())


# What the training images go through.
_AUGMENTATION = {"train_crop", "min_scale", "flip", "color_jitter", "lighting"}


def _listed(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


@dataclass
class KnnConfig(FeatureConfig):
    """kNN: pooled features, cosine similarity, votes exp(s / T).

    Args:
        k: numbers of neighbours; every k is combined with every temperature.
        temperature: temperatures T of the vote exp(s / T).
        resize: shorter side in pixels before the centre crop.
        crop: side in pixels of the centre crop.
        search: how neighbours are found, all with the same answer: faiss (on a CPU), torch (matmul
            and topk, on any device), shortlist (bfloat16 candidates, scored again in float32); auto
            takes the fastest exact one that is there.
        download: let torchvision fetch the data set that `--data torchvision:NAME` names.
    """

    k: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    temperature: list[float] = field(default_factory=lambda: [0.07, 0.2])
    resize: int = 256
    crop: int = 224
    search: Literal["auto", "faiss", "torch", "shortlist"] = "auto"
    download: bool = False


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
