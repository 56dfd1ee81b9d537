"""The names of a detector's tensors, here and in detectron2.

A detector saved under detectron2's names is loaded by its DetectionCheckpointer. The networks they
belong to have STRIDE_IN_1X1 False and take RGB.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from siambench.checkpoints.names import detectron2, detectron2_name

_RES5 = "roi_heads.res5."
_PREFIXES = [  # ours and detectron2's, the same behind them
    ("rpn.", "proposal_generator.rpn_head."),
    ("cls_score.", "roi_heads.box_predictor.cls_score."),
    ("bbox_pred.", "roi_heads.box_predictor.bbox_pred."),
    ("head.fc", "roi_heads.box_head.fc"),
    ("head.mask_head.", "roi_heads.mask_head."),
    ("head.norm.", f"{_RES5}norm."),
    *((f"body.lateral.{i}.", f"backbone.fpn_lateral{i + 2}.") for i in range(4)),
    *((f"body.output.{i}.", f"backbone.fpn_output{i + 2}.") for i in range(4)),
]


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector's state dict under detectron2's names; no tensor is copied.

    Raises:
        ValueError: a name is none of a detector's.
    """
    body = "backbone.bottom_up." if "body.lateral.0.weight" in state else "backbone."

    def theirs(name: str) -> str:
        for ours, prefix in _PREFIXES:
            if name.startswith(ours):
                return prefix + name.removeprefix(ours)
        if name.startswith("body.stages."):
            return body + detectron2_name(name.removeprefix("body.stages."))
        if name.startswith("head.layer4."):
            return "roi_heads." + detectron2_name(name.removeprefix("head."))
        raise ValueError(f"{name} is no name of a detector's tensor")

    return {theirs(name): tensor for name, tensor in state.items()}


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a detectron2 model under our names: undoes :func:`to_detectron2`.

    Raises:
        ValueError: a name is none of a Faster or Mask R-CNN, C4 or FPN.
    """

    def ours(name: str) -> str:
        for prefix, theirs in _PREFIXES:
            if name.startswith(theirs):
                return prefix + name.removeprefix(theirs)
        match = re.fullmatch(r"(backbone|roi_heads)\.(?:bottom_up\.)?((?:stem|res\d)\..*)", name)
        known = detectron2(match[2]) if match else None
        if match is None or known is None:
            raise ValueError(f"{name} is no name of a Faster or Mask R-CNN's tensor")
        return ("body.stages." if match[1] == "backbone" else "head.") + known

    return {ours(name): tensor for name, tensor in state.items()}
