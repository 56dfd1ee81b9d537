"""Mean average precision of heads on images with several labels (VOC07)."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from siambench.average_precision import interpolated_ap


@dataclass(frozen=True)
class Precisions:
    """Average precision of each head, in %, and one head's scores.

    Attributes:
        per_class: (heads, classes); NaN for a class without a present image.
        mean: mAP, the mean over the other classes (heads,).
        logits: the kept head's (n, classes).
    """

    per_class: np.ndarray
    mean: np.ndarray
    logits: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """The kept head's sigmoids (n, classes): not to rank by, since large logits round to 1."""
        return expit(self.logits.astype(np.float64))  # type: ignore[no-any-return]

    @property
    def choice(self) -> np.ndarray:
        """What a setting is chosen by, in % (heads,)."""
        return self.mean


class Ranking:
    """Gathers the scores of all images, which average precision needs at once: 4 n H C bytes.

    Args:
        keep: the head whose logits are kept image by image; None for none.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """One batch: logits (N, H, C), and labels (N, C) of 1 present, 0 left out, -1 absent."""
        self._batches.append((logits, labels))

    def scores(self) -> Precisions:
        """The result; at least one batch must have been added."""
        logits, labels = (torch.cat(part).cpu() for part in zip(*self._batches, strict=True))
        found = average_precisions(labels.numpy(), logits.numpy())
        rated = ~np.isnan(found[0])
        mean = found[:, rated].mean(1) if rated.any() else np.zeros(len(found))
        kept = logits[:, [] if self.keep is None else self.keep].numpy()
        return Precisions(per_class=found, mean=mean, logits=kept)


def average_precisions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each head and class, in %.

    The area under the interpolated precision-recall curve, as VISSL (mean_ap_list_meter) and
    fair_self_supervision_benchmark score VOC07 classification; not the 11-point rule of VOC07's own
    kit, which SimCLR, BYOL and CLIP use. Entries that are left out do not count.

    Args:
        labels: (n, C) of 1 present, 0 left out, -1 absent.
        scores: (n, H, C), higher is more likely.

    Returns:
        (H, C); NaN for a class without a present entry, 0 where a counted score is not finite.
    """
    found = np.full(scores.shape[1:], np.nan)
    for c in range(labels.shape[1]):
        counted = labels[:, c] != 0
        positive, ranked = labels[counted, c] == 1, scores[counted, :, c].T
        if positive.any():
            finite = np.isfinite(ranked).all(1)
            found[:, c] = 0
            found[finite, c] = 100 * interpolated_ap(positive, ranked[finite])
    return found
