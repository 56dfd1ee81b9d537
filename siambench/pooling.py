"""Pooling stage outputs to about nine thousand numbers, as VISSL and mmselfsup do for their heads."""

import math

import torch.nn.functional as F
from torch import Tensor

from siambench.errors import UserError

LAYERS = ("feature1", "feature2", "feature3", "feature4", "feature5", "avgpool")

# (kernel, stride, padding) at 224 px: map side -> AvgPool2d. Source: mmselfsup
# models/utils/multi_pooling.py ("specified"), after fair_self_supervision_benchmark's extraction:
# ResNet-50 gives 64*12*12 = 9216, 256*6*6 = 9216, 512*4*4 = 8192, 1024*3*3 = 9216, 2048*2*2 = 8192.
_SPECIFIED = {112: (10, 10, 4), 56: (16, 8, 0), 28: (13, 5, 0), 14: (8, 3, 0), 7: (6, 1, 0)}
_MOST = 9216


def pool_layer(stages: list[Tensor], layer: str) -> Tensor:
    """Pooled and flattened output of one layer.

    ``avgpool`` is the global mean of layer4. ``feature1`` … ``feature5`` use the published kernels
    where the map has the published side and the channels fill them (a ResNet-50 at 224 px);
    elsewhere an adaptive average to the largest grid with at most 9,216 numbers, which for
    ResNet-50 has the same size: floor(sqrt(9216 / channels)) = 12, 6, 4, 3, 2.

    Args:
        stages: feature1 to feature5, each (N, C, H, W) of any float type, as ``Backbone.stages`` gives them.
        layer: one of ``LAYERS``.

    Returns:
        Float32 (N, D) with D at most 9,216 (or C, where C is larger).

    Raises:
        UserError: ``layer`` is not one of ``LAYERS``.
    """
    if layer == "avgpool":
        return stages[-1].float().mean(dim=(2, 3))
    if layer not in LAYERS:
        raise UserError(f"layer {layer!r} is unknown; use one of {', '.join(LAYERS)}")
    maps = stages[LAYERS.index(layer)].float()
    channels, side = maps.shape[1], min(maps.shape[2:])
    grid = max(1, math.isqrt(_MOST // channels))
    if maps.shape[2] == maps.shape[3] and side in _SPECIFIED:
        kernel, stride, padding = _SPECIFIED[side]
        if (side + 2 * padding - kernel) // stride + 1 == grid:
            return F.avg_pool2d(maps, kernel, stride, padding).flatten(1)
    return F.adaptive_avg_pool2d(maps, min(grid, side)).flatten(1)
