"""Whether a network in memory computes what torchvision's ResNet does: names and shapes do not tell.

Dilation, other strides, poolings, activations or epsilons leave every weight as it is.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from siambench.backbone import Backbone, BackboneMeta
from siambench.errors import UserError, first_line
from siambench.progress import say

_CLOSE = 1e-9  # of the norm, in float64; an epsilon of 1e-6 for 1e-5 is a thousand times as much


def check_module(
    module: nn.Module, state: Mapping[str, Tensor], meta: BackboneMeta, prefix: str
) -> None:
    """Refuse a module whose last stage gives other maps than the backbone read out of it.

    What cannot be run (a forward pass that wants more than images, say) is said.

    Args:
        module: where the backbone was found.
        state, meta: the backbone.
        prefix: of its names in the module's state dict.

    Raises:
        UserError: it computes something else.
    """
    mine = Backbone(state, meta, "", "").double()
    made: list[Tensor] = []
    for height in (64, 75):  # paddings treat odd sizes differently; not every network takes them
        images = torch.randn(1, 3, height, 96, generator=torch.Generator().manual_seed(0)).double()
        made.clear()
        try:
            if height == 64:
                theirs = copy.deepcopy(module.get_submodule(prefix.rstrip("."))).cpu().double()
                _last_stage(theirs, state).register_forward_hook(lambda _m, _x, y: made.append(y))
            with torch.inference_mode():
                theirs.eval()(images)
        except Exception as error:  # a stranger's forward can raise anything, behind the stage too
            if not made and height == 64:
                say(
                    "the module: whether it computes what torchvision's does is not known "
                    f"({first_line(error)})"
                )
            if not made:
                return
        with torch.inference_mode():
            ours = mine.stages(images)[-1]
        if made[0].shape != ours.shape or not _close(made[0], ours):
            raise UserError(
                f"the module has a {meta.arch}'s names and shapes and computes something else "
                "(dilation, strides, pooling, activation or epsilon differ)"
            )


def _last_stage(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Layer4, whatever it is called: the last module with as many tensors as ``state``'s layer4 has."""
    tensors = sum(name.startswith("layer4.") for name in state)
    stages = [module for module in network.modules() if len(module.state_dict()) == tensors]
    if not stages:
        raise LookupError("its last stage is no module of its own")
    return stages[-1]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= _CLOSE * b.norm())


def same_features(theirs: nn.Module, ours: nn.Module) -> bool:
    """Whether two networks map images (N, 3, H, W) to the same features (N, dim), whatever the weights.

    Both are filled with one set of random weights, and left in float64 and evaluation mode.
    """
    draw = torch.Generator().manual_seed(0)
    state = theirs.double().state_dict()
    for name, tensor in state.items():
        if tensor.dim() == 4:
            fan_in = tensor[0].numel()
            tensor.normal_(0, (2 / fan_in) ** 0.5, generator=draw)
        elif name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=draw)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.5, generator=draw)
    images = torch.randn(1, 3, 43, 64, generator=draw, dtype=torch.float64)
    try:
        ours.double().load_state_dict(state)
        with torch.inference_mode():
            a, b = theirs.eval()(images), ours.eval()(images)
    except RuntimeError:  # other names, or no odd sizes (resnetaa50)
        return False
    return a.shape == b.shape and _close(a, b)
