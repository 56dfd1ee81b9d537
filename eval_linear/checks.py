"""What is wrong with a protocol's numbers, by themselves or for the data."""

import math

from eval_linear.config import KnnConfig, LinearConfig
from siambench.data.classification import Classification
from siambench.errors import UserError
from siambench.pooling import LAYERS
from siambench.progress import say


def problems(config: LinearConfig) -> list[str]:
    """One line for each of the protocol's numbers that makes no sense; empty if all do."""
    rates = list(dict.fromkeys(rate for rate, _ in config.settings))
    decays = list(dict.fromkeys(decay for _, decay in config.settings))
    twice = any(
        isinstance(swept, list) and len(set(swept)) < len(swept)
        for swept in (config.base_lr, config.weight_decay)
    )
    unknown = [layer for layer in config.layers if layer not in LAYERS]
    steps = config.milestones
    wrong = {
        "base_lr and weight_decay: name at least one of each": not config.settings,
        "base_lr and weight_decay: name each value once": twice,
        "base_lr must be positive": not all(0 < rate < math.inf for rate in rates),
        "weight_decay must not be negative": not all(0 <= decay < math.inf for decay in decays),
        "holdout must be between 0 and 1": not 0 < config.holdout < 1,
        "momentum must be at least 0 and below 1": not 0 <= config.momentum < 1,
        "nesterov needs a momentum above 0": config.nesterov and not config.momentum > 0,
        "batch_size must be at least 1": config.batch_size < 1,
        "batch_norm needs a batch_size of at least 2": config.batch_norm and config.batch_size < 2,
        "epochs must be at least 1": config.epochs < 1,
        "milestones are of schedule step": steps and config.schedule != "step",
        "milestones must rise, from 1 up to epochs": any(
            not before < after <= config.epochs
            for before, after in zip([0, *steps], steps, strict=False)
        ),
        "gamma must be above 0 and at most 1": not 0 < config.gamma <= 1,
        f"layers: {', '.join(unknown)} not among {', '.join(LAYERS)}": unknown,
        "layers: name at least one, each once": not config.layers
        or len(set(config.layers)) < len(config.layers),
        "crop must be at least 1 and at most resize": not 1 <= config.crop <= config.resize,
        "min_scale must be above 0 and at most 1": not 0 < config.min_scale <= 1,
        "color_jitter must be at least 0 and at most 1": not 0 <= config.color_jitter <= 1,
        "lighting must not be negative": not 0 <= config.lighting < math.inf,
        "views must not be negative": config.views < 0,
        "views are of the cached road; the online road draws anew": config.views > 0
        and config.road == "online",
    }
    return [line for line, is_so in wrong.items() if is_so]


def check_linear(config: LinearConfig) -> None:
    """Refuse a protocol that makes no sense whatever the data.

    Raises:
        UserError: the first of :func:`problems`.
    """
    for problem in problems(config):
        raise UserError(f"linear: {problem}")


def check_knn(config: KnnConfig) -> None:
    """Refuse a protocol that makes no sense whatever the data.

    Raises:
        UserError: names what is wrong.
    """
    if not 1 <= config.crop <= config.resize:
        raise UserError("knn: crop must be at least 1 and at most resize")
    if not config.temperature or not all(0 < t < math.inf for t in config.temperature):
        raise UserError("knn: name at least one temperature, all positive, e.g. 0.07")
    if len(set(config.temperature)) < len(config.temperature) or len(set(config.k)) < len(config.k):
        raise UserError("knn: name each k and each temperature once")
    if not config.k or min(config.k) < 1:
        raise UserError(f"knn: k is {config.k}; name at least one, all at least 1, e.g. 20")


def warn_of_enlarging(data: Classification, resize: int, crop: int) -> None:
    """Say so if the images are smaller than what the network is to see of them."""
    width, height = data.train.images[0].size
    if min(width, height) < crop:
        say(
            f"warning: {data.train.images.name(0)} has {width} x {height} pixels and is enlarged to "
            f"{resize} before the crop of {crop}; a backbone trained on small images wants --resize and "
            "--crop of their size"
        )
