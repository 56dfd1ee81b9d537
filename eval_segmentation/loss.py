"""The loss of an FCN: cross-entropy of its enlarged logits, the auxiliary head's added."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from eval_segmentation.config import SegmentConfig
from eval_segmentation.model import enlarge
from eval_segmentation.pairs import IGNORE
from siambench.distributed import World


def losses(
    logits: Tensor, aux: Tensor | None, labels: Tensor, config: SegmentConfig, world: World
) -> dict[str, Tensor]:
    """The head's loss and the auxiliary head's, the latter times ``aux_weight``.

    Args:
        logits, aux: (N, classes, h, w) of this process's images; ``aux`` may be None.
        labels: (N, H, W) int64, ``IGNORE`` where there is none.

    Returns:
        Of each head, a scalar whose mean over the processes is the loss of the whole batch.
    """
    found = {"head": segmentation_loss(logits, labels, config, world)}
    if aux is not None:
        found["aux"] = config.aux_weight * segmentation_loss(aux, labels, config, world)
    return found


def segmentation_loss(
    logits: Tensor, labels: Tensor, config: SegmentConfig, world: World
) -> Tensor:
    """Cross-entropy of logits (N, C, h, w), enlarged, over the labelled pixels of (N, H, W).

    Its sum is divided by *all* pixels, of which an ignored one thus counts as a loss of 0:
    mmsegmentation's default (mmseg/models/losses/cross_entropy_loss.py, ``avg_non_ignore=False``), and
    not torch's mean, which ``config.loss_over`` ``"labelled"`` is.
    """
    size = (labels.shape[1], labels.shape[2])
    logits = enlarge(logits, size, config.align_corners)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / _counted(labels, config.loss_over, world)


def _counted(labels: Tensor, over: Literal["all", "labelled"], world: World) -> Tensor | int:
    """What a process divides by: its pixels, or the labelled of all processes over their number."""
    if over == "all":
        return labels.numel()
    return (world.sum((labels != IGNORE).sum()) / world.size).clamp(min=1)
