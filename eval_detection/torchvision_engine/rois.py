"""The regions of interest that a batch trains on: proposals and ground truth, matched and drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eval_detection.masks import Mask, crop_mask
from eval_detection.torchvision_engine.boxes import match, sample
from eval_detection.torchvision_engine.rpn import Target

_FOREGROUND = 0.5  # detectron2, MODEL.ROI_HEADS.IOU_THRESHOLDS
_FRACTION = 0.25  # POSITIVE_FRACTION


@dataclass
class Rois:
    """R regions of a batch, in each image those of an object first, F of them in all.

    Attributes:
        boxes: (R_i, 4) of each image.
        labels: (R,), the number of classes where there is no object.
        counts: of each image, the regions of an object.
        found: (F,) rows of the regions of an object.
        truth: (F, 4) their objects' boxes.
        masks: their objects' masks and their own boxes (F, 4) on the host; None without masks.
    """

    boxes: list[Tensor]
    labels: Tensor
    counts: list[int]
    found: Tensor
    truth: Tensor
    masks: tuple[list[Mask], np.ndarray] | None

    @property
    def objects(self) -> list[Tensor]:
        """Boxes of the regions of an object, of each image."""
        return [boxes[:count] for boxes, count in zip(self.boxes, self.counts, strict=True)]

    def mask_targets(self, side: int) -> Tensor:
        """The part of each object's mask inside its region: (F, side, side) float, on the host."""
        assert self.masks is not None
        crops = [crop_mask(mask, box, side) for mask, box in zip(*self.masks, strict=True)]
        return torch.from_numpy(np.stack(crops) if crops else np.empty((0, side, side))).float()


@torch.no_grad()
def draw_rois(
    proposals: Sequence[Tensor],
    targets: Sequence[Target],
    generators: Sequence[torch.Generator],
    *,
    classes: int,
    count: int,
    masks: bool,
) -> Rois:
    """Add the ground truth to each image's proposals, match, and draw the regions to train on.

    The host waits for a GPU once, to know how many they are; with masks once more, for their boxes.

    Args:
        proposals: (P, 4) of each image.
        classes: number of foreground classes.
        count: regions per image, at most a quarter of them of an object.
        masks: also note the masks of the regions' objects.
    """
    boxes = [torch.cat((b, t.boxes)) for b, t in zip(proposals, targets, strict=True)]
    index, label, start = [], [], 0
    for target, rows in zip(targets, boxes, strict=True):
        which, kind = match(target.boxes, rows, _FOREGROUND, _FOREGROUND, keep_best=False)
        index.append(which + start)  # among the objects of the whole batch
        label.append(kind)
        start += len(target.boxes)
    keys = [
        torch.rand(len(b), generator=g, device=g.device)
        for b, g in zip(boxes, generators, strict=True)
    ]
    drawn = sample(
        pad_sequence(label, True, padding_value=-1), pad_sequence(keys, True), count, _FRACTION
    )
    numbers = torch.stack((drawn.positives, drawn.negatives), dim=1).tolist()  # the host waits
    kept, objects, found, begin = [], [], [], 0
    for i, (positives, negatives) in enumerate(numbers):
        positive = drawn.positive[i, :positives]
        kept.append(boxes[i][torch.cat((positive, drawn.negative[i, :negatives]))])
        objects.append(index[i][positive])
        found.append(torch.arange(begin, begin + positives))
        begin += positives + negatives
    rows = torch.cat(found).to(boxes[0].device, non_blocking=True)
    which = torch.cat(objects)
    labels = torch.full((begin,), classes, device=rows.device)
    labels[rows] = torch.cat([t.labels for t in targets])[which]
    rois = Rois(
        boxes=kept,
        labels=labels,
        counts=[positives for positives, _ in numbers],
        found=rows,
        truth=torch.cat([t.boxes for t in targets])[which],
        masks=None,
    )
    if masks:
        host = torch.cat((torch.cat(rois.objects).double(), which[:, None]), dim=1).cpu().numpy()
        known = [mask for target in targets for mask in target.masks]
        rois.masks = [known[int(i)] for i in host[:, 4]], host[:, :4].astype(np.float32)
    return rois
