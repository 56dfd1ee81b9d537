"""The fully-connected heads that methods put on a backbone, and views that pass both together."""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn


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


def together(backbone: nn.Module, projector: nn.Module, views: list[Tensor]) -> Tensor:
    """Outputs (V, N, d) of V views (N, 3, H, W), all of them one batch to the batch norms.

    The backbone sees views of one size together, the projector all, as in google-research/simclr
    (model.py) and facebookresearch/swav (resnet50.py).
    """
    sizes = (list(same) for _, same in groupby(views, lambda view: view.shape[-2:]))
    features = torch.cat([backbone(torch.cat(same)) for same in sizes])
    outputs: Tensor = projector(features)
    return outputs.unflatten(0, (len(views), -1))
