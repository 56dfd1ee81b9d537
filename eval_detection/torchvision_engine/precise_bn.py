"""Batch norm statistics of the final weights, instead of the running averages of training."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siambench.distributed import World

_ALONE = World(0, 1, torch.device("cpu"))


@torch.no_grad()
def precise_bn(
    model: nn.Module, forwards: Iterable[Callable[[], object]], world: World = _ALONE
) -> None:
    """Replace running statistics by those of all values of many training batches together.

    Every batch counts by its values per channel, and its variance without Bessel's correction, as in
    fvcore, nn/precise_bn.py, which detectron2 uses (Wu and Johnson 2021, section 3 and appendix).
    Under several processes each runs its part of the batches, and the statistics are those that the
    synchronised batch norms take over all of them. Frozen batch norms (torchvision's
    FrozenBatchNorm2d) keep theirs.

    Args:
        model: in training mode.
        forwards: functions that each run the model on one batch; at least one, none is run if the
            model has no batch norm.
        world: the processes that share a batch.
    """
    norms = batch_norms(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    means = [torch.zeros_like(_statistics(norm)[0], dtype=torch.float64) for norm in norms]
    squares = [torch.zeros_like(mean) for mean in means]
    totals = torch.zeros(len(norms), dtype=torch.float64, device=means[0].device)
    counts = [0] * len(norms)

    def count(number: int, values: Tensor) -> None:
        counts[number] = values.numel() // values.shape[1]

    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, i=i: count(i, inputs[0]))
        for i, norm in enumerate(norms)
    ]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the last batch
    for forward in forwards:
        forward()
        mine = torch.tensor(counts, dtype=torch.float64, device=totals.device)
        number = world.mean(mine) * world.size
        totals += number
        for norm, n, mean, square in zip(norms, number, means, squares, strict=True):
            batch_mean, batch_variance = (part.double() for part in _statistics(norm))
            mean += n * batch_mean
            square += (n - 1) * batch_variance + n * batch_mean**2
    for hook in hooks:
        hook.remove()
    for norm, momentum, total, mean, square in zip(
        norms, momenta, totals, means, squares, strict=True
    ):
        norm.momentum = momentum
        running_mean, running_variance = _statistics(norm)
        running_mean.copy_(mean / total)
        running_variance.copy_(square / total - (mean / total) ** 2)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that are trained: plain ones and those over several processes."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
