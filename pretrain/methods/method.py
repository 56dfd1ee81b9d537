"""What a method is: its modules, a loss of views, what moves beside the optimiser, and its settings."""

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, ParamSpec

import torch
from torch import Tensor, nn

from pretrain.config import PretrainConfig, need
from siambench.errors import UserError

# Settings of PretrainConfig that are of heads and losses, so that not every method has a use for them.
HEAD_FIELDS = (
    *("dim", "hidden_dim", "pred_dim", "fix_pred_lr", "predictor", "mlp_bn", "stop_gradient"),
    *("symmetric", "similarity"),
)


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


class Method(nn.Module):
    """Base of the methods; a file in this folder holds one of them, and is called as ``--method`` is.

    Args:
        config: the settings of the run.
        classes: of the training images' folders.
        images: training images.

    Attributes:
        label: as tables print it.
        views: of each image.
        multi_crop: whether it takes ``augment.small_views`` further ones.
        per_image: whether :meth:`forward` takes the images' numbers, too.
        uses: which of ``HEAD_FIELDS`` it reads; others must be left alone.
        Options: dataclass of the settings that it alone has, its docstring their documentation; their
            values are ``self.options``.
        backbone: the part that a checkpoint is converted to.
    """

    label: ClassVar[str]
    views: ClassVar[int] = 2
    multi_crop: ClassVar[bool] = False
    per_image: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    Options: ClassVar[type[Any]] = NoOptions
    backbone: nn.Module

    def __init__(self, config: PretrainConfig, classes: int, images: int) -> None:
        super().__init__()
        self.options = read_options(type(self), config)

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, the first the backbone's: ``params``; ``fix_lr``: the rate does not decay.

        ``scale``, where there is one, multiplies the rate.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad], "fix_lr": False}]

    def before_step(self, step: int) -> None:
        """Before the images of a step (from 0) come: after a resume the first is not 0."""

    def before_update(self, step: int) -> None:
        """Between the backward pass of a step (from 0) and the optimiser's."""

    def after_update(self, done: int, total: int) -> None:
        """When the optimiser has made step number ``done`` (from 1) of ``total``."""


def read_options(method: type[Method], config: PretrainConfig) -> Any:
    """The method's own settings from ``config.options``, typed as their defaults are.

    Raises:
        UserError: one is unknown, or of another type.
    """
    known = {f.name: f.default for f in fields(method.Options)}
    given: Mapping[str, Any] = config.options
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"is {near[0]} meant? " if near else ""
            has = ", ".join(known) or "none"
            raise UserError(
                f"--options.{name}: {config.method} has no such option; {meant}It has: {has}"
            )
        kind = type(known[name])
        whole = isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not kind and not (kind is float and whole):
            raise UserError(f"--options.{name} is {value!r}; it must be of type {kind.__name__}")
    return method.Options(**{name: type(known[name])(value) for name, value in given.items()})


def check_uses(method: type[Method], config: PretrainConfig) -> None:
    """Refuse head settings and smaller views that the method would not read.

    Raises:
        UserError: names the first that differs from its default.
    """
    if config.augment.small_views and not method.multi_crop:
        raise UserError(
            f"--augment.small_views is {config.augment.small_views}; --method {config.method} takes "
            f"{method.views} views and no smaller ones"
        )
    defaults = {f.name: f.default for f in fields(PretrainConfig)}
    for name in HEAD_FIELDS:
        if name not in method.uses and getattr(config, name) != defaults[name]:
            uses = ", ".join(f"--{n}" for n in HEAD_FIELDS if n in method.uses) or "none of these"
            raise UserError(
                f"--{name} is of no use to --method {config.method}, which reads {uses}; leave it out, "
                "or take a preset of that method"
            )


def check_range(options: Any, low: float, high: float, *names: str) -> None:
    """Refuse options outside of [``low``, ``high``]; infinity is outside of any.

    Raises:
        UserError: names the first.
    """
    for name in names:
        value = getattr(options, name)
        what = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        need(f"options.{name}", value, low <= value <= high and value < math.inf, what)


def check_positive(options: Any, *names: str) -> None:
    """Refuse options that are not above 0 and finite.

    Raises:
        UserError: names the first.
    """
    for name in names:
        value = getattr(options, name)
        need(f"options.{name}", value, 0 < value < math.inf, "above 0 and finite")


def as_float(x: Tensor) -> Tensor:
    """``x`` in float32 at least: bfloat16 under autocast is too coarse for a loss."""
    return x if x.dtype.itemsize > 2 else x.float()


P = ParamSpec("P")


def in_float(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``function`` with its tensors in float32 at least, and out of autocast.

    Autocast would take products of matrices to bfloat16 whatever they are given, and a cosine of 0.999 to 1.
    """

    @functools.wraps(function)
    def outside(*given: P.args, **named: P.kwargs) -> Tensor:
        floats = [as_float(x) if isinstance(x, Tensor) else x for x in given]
        device = next(x.device.type for x in given if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*floats, **named)  # type: ignore[arg-type]

    return outside
