"""The fully-connected heads that methods put on a backbone."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    sizes: Sequence[int], hidden_bn: bool, output_bn: nn.Module | None, bias: bool | None = None
) -> nn.Sequential:
    """fc layers from size to size with ReLU between them.

    Args:
        sizes: channels from the input to the output.
        hidden_bn: batch norm before each ReLU.
        output_bn: what follows the last fc, or None.
        bias: of the last fc; None for one where no batch norm follows.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers.append(nn.Linear(before, after, bias=not hidden_bn))
        if hidden_bn:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.ReLU(inplace=True))
    last = output_bn is None if bias is None else bias
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=last))
    if output_bn is not None:
        layers.append(output_bn)
    return nn.Sequential(*layers)
