"""What a pre-training run is made of. The defaults are the official SimSiam recipe."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from siambench.errors import UserError


@dataclass
class AugmentConfig:
    """Random views of an image. The defaults are MoCo v2's, as SimSiam uses them.

    Args:
        crop: side of a view in pixels.
        resize: side to which the monitor's test images are resized before their centre crop.
        scale: range of the crop's area, as a share of the image's.
        small_views: further views of an image, of smaller crops (SwAV's multi-crop); for methods that
            take more than two.
        small_crop: side of those in pixels.
        small_scale: range of their crop's area.
        ratio: range of the crop's width / height.
        pad: border added on each side before the crop, as a share of the side, by repeating the
            edge pixels.
        rotate: rotation before the crop, up to this many degrees either way.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_p: probability of the colour jitter.
        gray: probability of losing colour.
        blur: probability of a Gaussian blur.
        blur_second: the same for an image's second view; null for the first's.
        sigma: range of its standard deviation in pixels.
        solarize: probability that brightness is inverted where it is at least half.
        solarize_second: the same for an image's second view; null for the first's.
        recolour: probability that a view's brightness is stretched to [0, 1] and mapped onto a ramp
            from a darker to a lighter random colour. Takes what identifies an image by its colours
            and contrast.
        recolour_power: the ramp is mixed from one grey ramp and the random one with a weight of
            u ** recolour_power for the latter, u uniform in [0, 1]; 0 for the random one alone.
        tone: with recolour, range of the exponent of a gamma curve: exp(±tone).
        noise: with recolour, most standard deviation of the noise added to the stretched brightness.
    """

    crop: int = 224
    resize: int = 256
    scale: tuple[float, float] = (0.2, 1.0)
    small_views: int = 0
    small_crop: int = 96
    small_scale: tuple[float, float] = (0.05, 0.14)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: float = 0.0
    rotate: float = 0.0
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    blur_second: float | None = None
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_second: float | None = None
    recolour: float = 0.0
    recolour_power: float = 0.0
    tone: float = 0.0
    noise: float = 0.0


@dataclass
class PretrainConfig:
    """One pre-training run.

    Args:
        data: folder in ImageNet's layout (train/CLASS/IMAGE and val/CLASS/IMAGE).
        out: run folder: checkpoints, monitor.jsonl and steps.jsonl.
        preset: name of the preset this started from.
        method: simsiam, its relatives simclr, mocov2, byol, swav, barlow_twins, vicreg, its variants
            alternating and moving_average, or supervised (cross entropy on the class folders).
        options: settings of that method alone, as --options.NAME VALUE; docs/relatives.md has them.
        arch: torchvision's name, with -wN for N planes in layer1 instead of 64.
        epochs: passes over the training images.
        batch_size: images per step (two or more views of each), over all processes.
        accumulate: parts into which a step's batch is cut to save memory; each part has batch
            statistics of its own.
        base_lr: learning rate per 256 images; the rate is base_lr * batch_size / 256.
        warmup_epochs: epochs of linear warm-up, stepped per iteration.
        warmup_start: rate at the start of the warm-up, as a share of the rate at its end.
        cosine: whether the decay after the warm-up steps per epoch or per step.
        final_lr: rate at the end of the decay, as a share of the rate at its top.
        milestones: epochs after which the rate is divided by ten, instead of the cosine.
        optimizer: sgd, or lars (each layer's update scaled by the norms of weights and gradient).
        momentum: of either.
        weight_decay: on all parameters, batch norm and biases included.
        exclude_1d: leave batch norms and biases out of weight decay and of lars's scaling.
        zero_init_residual: start each residual branch at zero.
        dim: size of the projector's output, d.
        hidden_dim: hidden size of the projector; 0 for the backbone's feature size.
        pred_dim: hidden size of the predictor.
        fix_pred_lr: keep the predictor's learning rate constant after the warm-up.
        predictor: mlp, none (the projection itself), or fixed (an mlp that stays as initialised).
        mlp_bn: where projector and predictor have batch norm: none; hidden (hidden layers);
            default (and the projector's output); all (and the predictor's output).
        stop_gradient: take the target as a constant.
        symmetric: average the loss with the one of the views exchanged.
        similarity: cosine, or cross_entropy of softmaxed outputs.
        views: device (colour and blur in batches where the training runs), cpu (all in the loader
            processes), or pil (the official pipeline: Pillow and torchvision).
        augment: the random views.
        knn_every: epochs between kNN monitors (and at the last epoch); 0 for none.
        knn_images: most images per split that the kNN monitor looks at.
        on_collapse: warn, or stop, when the output has collapsed.
        collapse_steps: steps that the output's std must stay under a tenth of 1/sqrt(dim) for that.
        log_every: steps between lines of steps.jsonl; the loss is read from the device only then.
        checkpoint_every: a checkpoint every so many steps of the run, and after each epoch.
        tensorboard: write OUT/tensorboard too.
        bf16: bfloat16 autocast.
        compile: torch.compile the method; for GPUs (minutes of compilation, no gain on a CPU).
        seed: of initialisation, order and views.
        device: auto, cpu, cuda or cuda:N; under torchrun each process takes its own GPU.
        workers: loader processes (of each process); -1 for a quarter of the cores on a CPU, one
            per core (at most 16) beside a GPU.
        skip_bad: leave out images that cannot be decoded instead of refusing.
    """

    data: str
    out: str = "runs/pretrain"
    preset: str = ""
    method: str = "simsiam"
    options: dict[str, Any] = field(default_factory=dict)
    arch: str = "resnet50"
    epochs: int = 100
    batch_size: int = 512
    accumulate: int = 1
    base_lr: float = 0.05
    warmup_epochs: int = 0
    warmup_start: float = 0.0
    cosine: Literal["epoch", "step"] = "epoch"
    final_lr: float = 0.0
    milestones: list[int] = field(default_factory=list)
    optimizer: Literal["sgd", "lars"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    exclude_1d: bool = False
    zero_init_residual: bool = True
    dim: int = 2048
    hidden_dim: int = 0
    pred_dim: int = 512
    fix_pred_lr: bool = False
    predictor: Literal["mlp", "none", "fixed"] = "mlp"
    mlp_bn: Literal["none", "hidden", "default", "all"] = "default"
    stop_gradient: bool = True
    symmetric: bool = True
    similarity: Literal["cosine", "cross_entropy"] = "cosine"
    views: Literal["device", "cpu", "pil"] = "device"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    knn_every: int = 1
    knn_images: int = 10_000
    on_collapse: Literal["warn", "stop"] = "warn"
    collapse_steps: int = 500
    log_every: int = 20
    checkpoint_every: int = 1000
    tensorboard: bool = False
    bf16: bool = False
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    workers: int = -1
    skip_bad: bool = False


# What may differ when a run is resumed: it changes where, how fast and how closely watched, not the
# weights.
RUNTIME_FIELDS = frozenset(
    {
        "data",
        "out",
        "preset",
        "knn_every",
        "knn_images",
        "on_collapse",
        "collapse_steps",
        "log_every",
        "checkpoint_every",
        "tensorboard",
        "compile",
        "device",
        "workers",
    }
)


def check_config(config: PretrainConfig) -> None:
    """Refuse numbers that cannot be meant, NaN and infinity among them.

    Raises:
        UserError: names the first flag that is wrong, its value and what it must be.
    """
    c = config
    need("epochs", c.epochs, c.epochs >= 1, "at least 1")
    need("batch_size", c.batch_size, c.batch_size >= 2, "at least 2 (batch norm)")
    need("accumulate", c.accumulate, c.accumulate >= 1, "at least 1")
    need("base_lr", c.base_lr, 0 < c.base_lr < math.inf, "above 0 and finite")
    fewer = f"0 or more, and fewer than the {c.epochs} epochs"
    need("warmup_epochs", c.warmup_epochs, 0 <= c.warmup_epochs < c.epochs, fewer)
    for name in ("warmup_start", "final_lr"):
        need(name, getattr(c, name), 0 <= getattr(c, name) <= 1, "between 0 and 1")
    inside = all(c.warmup_epochs < epoch < c.epochs for epoch in c.milestones)
    rising = f"rising, behind the warm-up and before the end ({c.epochs})"
    need("milestones", c.milestones, inside and sorted({*c.milestones}) == c.milestones, rising)
    no_cosine = not (c.milestones and c.final_lr)
    need("final_lr", c.final_lr, no_cosine, "0 with --milestones, which take the cosine's place")
    need("momentum", c.momentum, 0 <= c.momentum < 1, "0 or more, and below 1")
    need("weight_decay", c.weight_decay, 0 <= c.weight_decay < math.inf, "0 or more, and finite")
    need("dim", c.dim, c.dim >= 1, "at least 1")
    need("hidden_dim", c.hidden_dim, c.hidden_dim >= 0, "at least 0")
    need("pred_dim", c.pred_dim, c.pred_dim >= 1, "at least 1")
    need("knn_every", c.knn_every, c.knn_every >= 0, "at least 0")
    need("workers", c.workers, c.workers >= -1, "0 or more, or -1")
    for name in ("log_every", "checkpoint_every", "collapse_steps"):
        need(name, getattr(c, name), getattr(c, name) >= 1, "at least 1")
    need("seed", c.seed, 0 <= c.seed < 2**63, "0 or more, and below 2**63")
    _check_augment(c.augment, c.views)
    if c.knn_every:
        need("knn_images", c.knn_images, c.knn_images >= 1, "at least 1; --knn_every 0 for none")
        enough = f"at least --augment.crop, {c.augment.crop}"
        need("augment.resize", c.augment.resize, c.augment.resize >= c.augment.crop, enough)


# What the fixed pipelines do not have; 0 is the default of each.
_MISSING = {
    "device": (),
    "cpu": ("recolour", "recolour_power", "tone", "noise"),
    "pil": ("pad", "rotate", "recolour", "recolour_power", "tone", "noise"),
}


def _check_augment(augment: AugmentConfig, views: str) -> None:
    v = augment
    for name in ("crop", "small_crop"):
        need(f"augment.{name}", getattr(v, name), getattr(v, name) >= 8, "at least 8")
    need("augment.small_views", v.small_views, v.small_views >= 0, "at least 0")
    names = ["flip", "jitter_p", "gray", "blur", "solarize", "recolour"]
    names += [n for n in ("blur_second", "solarize_second") if getattr(v, n) is not None]
    for name in names:
        value = getattr(v, name)
        need(f"augment.{name}", value, 0 <= value <= 1, "a probability, 0 to 1")
    for name in ("pad", "recolour_power", "tone", "noise"):
        value = getattr(v, name)
        need(f"augment.{name}", value, 0 <= value < math.inf, "0 or more, and finite")
    need("augment.rotate", v.rotate, 0 <= v.rotate <= 180, "0 to 180 degrees")
    limits = {"scale": 1.0, "small_scale": 1.0, "ratio": math.inf, "sigma": math.inf}
    for name, most in limits.items():
        low, high = getattr(v, name)
        inside = 0 < low <= high <= most and high < math.inf
        limit = "1 at most" if most == 1 else "finite"
        need(f"augment.{name}", [low, high], inside, f"[low, high], above 0, in order and {limit}")
    within = all(0 <= s <= 1 for s in v.jitter[:3]) and 0 <= v.jitter[3] <= 0.5
    need("augment.jitter", list(v.jitter), within, "0 to 1 three times, then a hue of 0 to 0.5")
    for name in _MISSING[views]:
        only = f"0 with --views {views}, which has no {name}; or take --views device"
        need(f"augment.{name}", getattr(v, name), getattr(v, name) == 0, only)


def need(flag: str, value: Any, good: bool, what: str) -> None:
    """Refuse ``value`` of ``--flag`` unless it is ``good``.

    Raises:
        UserError: says ``what`` it must be.
    """
    if not good:
        raise UserError(f"--{flag} is {value}; it must be {what}")
