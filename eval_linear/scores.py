"""What is held out to choose a learning rate by, and how often each head is right."""

from dataclasses import dataclass

import numpy as np

from eval_linear.probe import Probe
from eval_linear.roads import Batches, Cached, Online

_BATCH = 1024  # images per batch


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A random ``fraction`` of every class: bool (n,).

    At least one image of a class is held out and at least one is not; none of a class of one.
    """
    rng = np.random.default_rng([seed, 2])
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    return held


@dataclass(frozen=True)
class Scores:
    """How often each head of one layer was right, in %.

    Attributes:
        top1, top5: (heads,).
        per_class: top-1 among the images of a class, (heads, classes); NaN for a class without.
    """

    top1: np.ndarray
    top5: np.ndarray
    per_class: np.ndarray


def score(
    probe: Probe, road: Online | Cached, split: str, labels: np.ndarray, index: np.ndarray
) -> list[Scores]:
    """Score all heads on the centre crops of the images ``index`` of a split; one entry per layer."""
    batches: Batches = np.array_split(index, -(-len(index) // _BATCH))
    heads, classes = probe.heads[0].bias.shape
    first = np.zeros((len(probe.layers), heads, classes))
    fifth = np.zeros((len(probe.layers), heads))
    for batch, features in zip(batches, road.center(split, batches), strict=True):
        y = labels[batch]
        for number, (layer, rows) in enumerate(
            zip(probe.heads, probe.split(features), strict=True)
        ):
            best = layer.logits(rows).topk(min(5, classes), dim=2).indices.cpu().numpy()
            hits = best == y[:, None, None]
            np.add.at(first[number].T, y, hits[:, :, 0])
            fifth[number] += hits.any(2).sum(0)
    counts = np.bincount(labels[index], minlength=classes)
    with np.errstate(invalid="ignore"):
        return [
            Scores(100 * f.sum(1) / len(index), 100 * t / len(index), 100 * f / counts)
            for f, t in zip(first, fifth, strict=True)
        ]
