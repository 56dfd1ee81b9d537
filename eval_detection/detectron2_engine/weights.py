"""The backbone's weights into a detectron2 model: all of them, and nothing of it left to chance."""

import torch
from torch import Tensor, nn

from siambench.backbone import Backbone
from siambench.checkpoints.names import to_detectron2
from siambench.errors import UserError

_MOST_SHOWN = 5
_COUNT = ".num_batches_tracked"  # which detectron2's frozen batch norms do not have


def load_backbone(model: nn.Module, backbone: Backbone) -> None:
    """Fill the backbone and, in a C4 model, the head's res5 of ``model``.

    Raises:
        UserError: a tensor of the backbone has no place in the model, or a weight or buffer of the
            model's backbone is not in the file; names both.
    """
    state = model.state_dict()
    body = "backbone.bottom_up." if "backbone.bottom_up.stem.conv1.weight" in state else "backbone."
    res5 = "roi_heads.res5."
    given = {
        (res5 + name.removeprefix("res5.") if name.startswith("res5.") and body == "backbone."
         else body + name): torch.from_numpy(array)
        for name, array in to_detectron2(backbone.resnet.state_dict()).items()
    }  # fmt: skip
    wanted = {
        name
        for name in state
        if name.startswith((body, res5)) and not name.startswith(res5 + "norm.")
    }
    _refuse(
        "has no place in detectron2's network",
        [n for n, t in given.items() if not _fits(t, state.get(n)) and not _idle(n, state)],
        backbone,
    )
    _refuse("is not in the backbone", sorted(wanted - set(given)), backbone)
    model.load_state_dict({n: t for n, t in given.items() if n in state}, strict=False)


def _fits(tensor: Tensor, place: Tensor | None) -> bool:
    return place is not None and place.shape == tensor.shape


def _idle(name: str, state: dict[str, Tensor]) -> bool:
    """Whether ``name`` counts the batches of a norm that the model holds frozen."""
    return name.endswith(_COUNT) and name.replace(_COUNT, ".running_mean") in state


def _refuse(what: str, names: list[str], backbone: Backbone) -> None:
    if names:
        shown = ", ".join(names[:_MOST_SHOWN])
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        raise UserError(
            f"backbone {backbone.name} ({backbone.meta.arch}): {shown}{more} {what}; convert the "
            "checkpoint again, or use --engine torchvision"
        )
