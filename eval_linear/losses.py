"""Cross-entropy of one label per image, or of several: loss and slope of many heads, in place."""

import torch
import torch.nn.functional as F
from torch import Tensor


def totals(weight: Tensor, labels: Tensor) -> Tensor:
    """What the weights of a batch are divided by so that the loss is a mean.

    Args:
        weight: what each image counts for each head (N, H).
        labels: classes (N,); or (N, C) of 1 present, 0 left out, -1 absent.

    Returns:
        Per head (H,), the images' weights added up; with several labels per image, those of all
        entries that are not left out. Processes that share a batch add theirs up.
    """
    if labels.dim() == 1:
        return weight.sum(0)
    return (labels != 0).sum(1).to(weight.dtype) @ weight


def slope_(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Turn logits into the loss's slope at them; softmax for one label, sigmoid for several.

    With several labels every class is a problem of its own, and entries left out have no slope, as in
    VISSL's bce_logits_multiple_output_single_target. VISSL averages per class and adds the classes
    up; here the mean is over all entries, so that a learning rate does not depend on their number.

    Args:
        logits: (N, H, C), overwritten by the slope.
        labels, weight: as for :func:`totals`, the weight already divided by it.

    Returns:
        The loss of each head (H,). A softmax that is 0 in float32 counts as a loss of 87.
    """
    if labels.dim() == 1:
        chosen = labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        p = torch.softmax(logits, 2, out=logits)
        at_label = p.gather(2, chosen)
        floor = torch.finfo(p.dtype).tiny
        loss = -(at_label.squeeze(2).clamp(min=floor).log() * weight).sum(0)
        p.scatter_(2, chosen, at_label - 1).mul_(weight.unsqueeze(2))
        return loss
    present = (labels == 1).to(logits.dtype).unsqueeze(1)
    counts = (labels != 0).unsqueeze(1) * weight.unsqueeze(2)
    loss = ((F.softplus(logits) - present * logits) * counts).sum((0, 2))
    logits.sigmoid_().sub_(present).mul_(counts)
    return loss
