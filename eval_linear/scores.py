"""What is held out to choose a setting by, and how well each head does on a split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval_linear.multilabel import Precisions, Ranking
from eval_linear.probe import Probe
from eval_linear.roads import Batches, Cached, Online

_BATCH = 1024  # images per batch, or
_LOGITS = 2**25  # as many as have this many logits


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A random ``fraction`` of every class, or of all images where they have several labels: bool (n,).

    At least one image of a class is held out and at least one is not; none of a class of one.

    Args:
        labels: classes (n,), or (n, C) with several per image.
        fraction: in (0, 1).
        seed: of the draw.
    """
    rng = np.random.default_rng([seed, 2])
    held = np.zeros(len(labels), bool)
    groups = labels if labels.ndim == 1 else np.zeros(len(labels), int)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    return held


@dataclass(frozen=True)
class Scores:
    """How often each head is right, in %, and what one of them says of each image.

    Attributes:
        top1, top5: (heads,).
        per_class: top-1 among the images of a class (heads, classes); NaN for a class without.
        mean_class: mean of ``per_class`` over the classes that have images (heads,).
        right: images whose first class is the right one (heads,).
        predicted: the kept head's classes (n,); -1 where its logits are not finite.
        probability: softmax of the predicted class (n,).
    """

    top1: np.ndarray
    top5: np.ndarray
    per_class: np.ndarray
    mean_class: np.ndarray
    right: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray

    @property
    def choice(self) -> np.ndarray:
        """What a setting is chosen by, in % (heads,)."""
        return self.top1


class Tally:
    """Counts right answers batch by batch, on the logits' device and without waiting for it.

    Among equal logits the lowest class comes first, as in numpy's argmax. An image of which a head
    has a logit that is not finite is wrong for that head.

    Args:
        keep: the head whose answers are kept image by image; None for none.

    Example:
        >>> tally = Tally()
        >>> tally.add(torch.eye(3).view(3, 1, 3), torch.tensor([0, 1, 1]))
        >>> tally.scores().top1.round(2).tolist()
        [66.67]
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self._first: Tensor | None = None  # right answers (classes, heads)
        self._fifth = self._count = torch.zeros(0)
        self._answers: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: logits (N, H, C), and classes (N,) on the same device."""
        classes = logits.shape[2]
        if self._first is None:
            self._first = labels.new_zeros(classes, logits.shape[1])
            self._fifth, self._count = labels.new_zeros(logits.shape[1]), labels.new_zeros(classes)
        finite = (logits.amin(2) > -torch.inf) & (logits.amax(2) < torch.inf)  # NaN: neither
        label = labels.view(-1, 1, 1)
        own = logits.gather(2, label.expand(-1, logits.shape[1], 1))
        before = (torch.arange(classes, device=logits.device) < label).to(logits.dtype)
        told = torch.empty_like(logits)  # 1 or 0, which add up ten times faster than bool
        rank = torch.gt(logits, own, out=told).sum(2)
        rank += torch.eq(logits, own, out=told).mul_(before).sum(2)
        self._first.index_add_(0, labels, (finite & (rank < 1)).to(labels.dtype))
        self._fifth += (finite & (rank < 5)).sum(0)
        self._count.index_add_(0, labels, torch.ones_like(labels))
        if self.keep is not None:
            kept = logits[:, self.keep]
            best = kept.argmax(1)
            probability = kept.softmax(1).gather(1, best.unsqueeze(1)).squeeze(1)
            self._answers.append((best.where(finite[:, self.keep], -1), probability))

    def scores(self) -> Scores:
        """The result; at least one batch must have been added."""
        assert self._first is not None, "no batch"
        first, fifth, count = (x.cpu().numpy() for x in (self._first.T, self._fifth, self._count))
        right = first.sum(1)
        with np.errstate(invalid="ignore"):
            per_class = 100 * first / count
        predicted, probability = (
            torch.cat(part).cpu().numpy() if part else np.zeros(0)
            for part in (zip(*self._answers, strict=True) if self._answers else ((), ()))
        )
        return Scores(
            top1=100 * right / count.sum(),
            top5=100 * fifth / count.sum(),
            per_class=per_class,
            mean_class=per_class[:, count > 0].mean(1),
            right=right,
            predicted=predicted,
            probability=probability,
        )


def score(
    probe: Probe,
    road: Online | Cached,
    split: str,
    labels: np.ndarray,
    index: np.ndarray,
    keep: Sequence[int] | None = None,
) -> list[Scores] | list[Precisions]:
    """Score all heads on the centre crops of the images ``index`` of a split; one entry per layer.

    Args:
        probe: the heads.
        road: where features come from.
        split: as ``road.center`` names it.
        labels: of the whole split, (n,), or (n, C) with several per image.
        index: which images.
        keep: the head of each layer whose answers are kept image by image.
    """
    heads, classes = probe.heads[0].bias.shape
    size = max(1, min(_BATCH, _LOGITS // (heads * classes)))
    batches: Batches = np.array_split(index, -(-len(index) // size))
    several = labels.ndim == 2
    tallies = [
        (Ranking if several else Tally)(None if keep is None else keep[layer])
        for layer in range(len(probe.layers))
    ]
    for batch, features in zip(batches, road.center(split, batches), strict=True):
        y = torch.from_numpy(labels[batch]).to(features.device)
        for tally, layer, rows in zip(tallies, probe.heads, probe.split(features), strict=True):
            tally.add(layer.logits(rows), y)
    return [tally.scores() for tally in tallies]  # type: ignore[return-value]
