"""Batch norm statistics of the final weights, instead of the running averages of training."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def precise_bn(model: nn.Module, forwards: Iterable[Callable[[], object]]) -> None:
    """Replace running statistics by those of many training batches (Wu and Johnson 2021, section 3).

    Every batch counts alike: the mean is the mean of the batches' means, the variance that of all
    their values together. Under several processes each runs its part of the batches, and the
    statistics are those that the synchronised batch norms take over all of them. Frozen batch norms
    (torchvision's FrozenBatchNorm2d) keep theirs.

    Args:
        model: in training mode.
        forwards: functions that each run the model on one batch; at least one, none is run if the
            model has no batch norm.
    """
    norms = batch_norms(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    means = [torch.zeros_like(_statistics(norm)[0]) for norm in norms]
    squares = [torch.zeros_like(_statistics(norm)[1]) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the last batch
    count = 0
    for forward in forwards:
        forward()
        count += 1
        for norm, mean, square in zip(norms, means, squares, strict=True):
            batch_mean, batch_variance = _statistics(norm)
            mean += batch_mean
            square += batch_variance + batch_mean**2
    for norm, momentum, mean, square in zip(norms, momenta, means, squares, strict=True):
        norm.momentum = momentum
        running_mean, running_variance = _statistics(norm)
        running_mean.copy_(mean / count)
        running_variance.copy_(square / count - (mean / count) ** 2)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that are trained: plain ones and those over several processes."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
