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
    layer4 = sum(name.startswith("layer4.") for name in state)
    for height in (64, 75):  # paddings treat odd sizes differently; not every network takes them
        images = torch.randn(1, 3, height, 96, generator=torch.Generator().manual_seed(0)).double()
        made: list[Tensor] = []
        try:
            theirs = copy.deepcopy(module.get_submodule(prefix.rstrip("."))).cpu().double().eval()
            stage = [m for m in theirs.modules() if len(m.state_dict()) == layer4][-1]
            stage.register_forward_hook(lambda _module, _given, maps, made=made: made.append(maps))
            with torch.inference_mode():
                theirs(images)
        except Exception as error:  # a stranger's forward can raise anything, behind the stage too
            if not made:
                if height == 64:
                    why = first_line(error)
                    say(
                        f"the module: whether it computes what torchvision's does is not known ({why})"
                    )
                return
        with torch.inference_mode():
            ours = mine.stages(images)[-1]
        if made[0].shape != ours.shape or not _close(made[0], ours):
            raise UserError(
                f"the module has a {meta.arch}'s names and shapes and computes something else "
                "(dilation, strides, pooling, activation or epsilon differ)"
            )


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
