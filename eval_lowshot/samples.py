"""Low-shot samples: which training images each class may see, drawn or given, and kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval_lowshot.config import SvmConfig
from eval_lowshot.targets import targets
from siambench.files import write_text

if TYPE_CHECKING:
    from eval_lowshot.data import SvmData


@dataclass(frozen=True)
class Sample:
    """The images of one draw.

    Attributes:
        k: positives per class.
        number: 0, 1, ... among the samples of this k.
        images: int64 (B, n), rows of train. Several labels an image: every class has images of its
            own, so B = classes; else all share one sample, so B = 1.
        labels: int8 (B, n) of 1, -1 and 0 (padding, or left out); with B = 1 the class numbers, int64.
        multilabel: which of the two it is.
    """

    k: int
    number: int
    images: np.ndarray
    labels: np.ndarray
    multilabel: bool

    def of(self, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What the SVMs of some classes are trained on.

        Args:
            columns: P class numbers.

        Returns:
            Rows of train, int64 (B, n), and what they are to be called, int8 (B, n, P) of 1, -1, and 0
            (padding, or left out). Several labels an image: B = P of the columns, and P = 1; else
            B = 1, one class against the rest.
        """
        chosen = np.asarray(columns, np.int64)
        if self.multilabel:
            return self.images[chosen], self.labels[chosen][:, :, None]
        return self.images, np.where(self.labels[:, :, None] == chosen, 1, -1).astype(np.int8)

    @property
    def rows(self) -> np.ndarray:
        """Its rows of train, sorted, each once."""
        return np.unique(self.images[self.labels != 0] if self.multilabel else self.images)


def padded(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int, number: int) -> Sample:
    """The sample of several labels an image whose classes have these rows and labels of 1 and -1."""
    length = max(len(rows) for rows, _ in parts)
    images, labels = (
        np.zeros((len(parts), length), np.int64),
        np.zeros((len(parts), length), np.int8),
    )
    for at, (rows, y) in enumerate(parts):
        images[at, : len(rows)], labels[at, : len(rows)] = rows, y
    return Sample(k, number, images, labels, True)


def samples_of(data: "SvmData", config: SvmConfig, seed: int) -> list[Sample]:
    """Every sample, by k, then number: the given ones, or draws.

    A draw has k images with the class and, where images have several labels, k times
    ``negatives_per_positive`` without it, none twice. Each class is drawn by itself, as in
    fair_self_supervision_benchmark, extra_scripts/create_voc_low_shot_samples.py and
    create_places_low_shot_samples.py. A draw depends on the labels, the seed, k, the sample's number
    and the class, not on which others are made.

    Args:
        data: as :func:`eval_lowshot.data.open_data` checks it.
        config: the protocol.
        seed: the trial's.
    """
    if data.given:
        return list(data.given)
    pools = _pools(data, str(config.difficult_train))
    ratio = data.negatives_per_positive(config) if data.multilabel else 0
    samples = []
    numbers = data.numbers or range(len(data.classes))
    for k, number in product(config.k, range(config.samples)):
        draws = []
        for label, (positives, negatives) in zip(numbers, pools, strict=True):
            rng = np.random.default_rng([seed % 2**32, k, number, label])
            draws.append(np.sort(rng.choice(positives, k, replace=False)))
            if ratio:
                draws.append(rng.choice(negatives, k * ratio, replace=False))
        samples.append(_drawn(draws, data.multilabel, k, number))
    return samples


def _pools(data: "SvmData", difficult: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each class the rows of train with it and (several labels an image) without."""
    labels, none = data.train.labels, np.empty(0, np.int64)
    if not data.multilabel:
        ends = np.cumsum(np.bincount(labels, minlength=len(data.classes)))[:-1]
        return [(rows, none) for rows in np.split(np.argsort(labels, kind="stable"), ends)]
    signs = targets(labels, range(len(data.classes)), difficult)
    return [(np.flatnonzero(y == 1), np.flatnonzero(y == -1)) for y in signs.T]


def _drawn(draws: list[np.ndarray], multilabel: bool, k: int, number: int) -> Sample:
    """The sample of one draw a class, or of two: with it, and without."""
    if not multilabel:
        labels = np.repeat(np.arange(len(draws)), k)
        return Sample(k, number, np.concatenate(draws)[None], labels[None], False)
    parts = []
    for positives, negatives in zip(draws[::2], draws[1::2], strict=True):
        rows = np.concatenate([positives, negatives])
        y = np.repeat(np.array([1, -1], np.int8), [len(positives), len(negatives)])
        order = np.argsort(rows)
        parts.append((rows[order], y[order]))
    return padded(parts, k, number)


def write_samples(samples: Sequence[Sample], data: "SvmData", path: Path, seed: int) -> None:
    """``samples.json``: which images every sample has, as rows of train, and the names of these rows.

    One line for each k, sample and class, or for each k and sample where images have one label.

    Args:
        samples: all of a trial.
        data: whose train they are of; the names are under that split's.
        path: the file.
        seed: the trial's.
    """
    used = np.unique(np.concatenate([sample.rows for sample in samples])).tolist()
    names = {row: data.train.images.name(row) for row in used}
    lines = []
    for sample in samples:
        head = {"k": sample.k, "sample": sample.number}
        for at, (images, labels) in enumerate(zip(sample.images, sample.labels, strict=True)):
            whose = {"class": data.classes[at]} if sample.multilabel else {}
            rows = images[labels != 0] if sample.multilabel else images
            lines.append(json.dumps({**head, **whose, "images": np.sort(rows).tolist()}))
    start = (
        f'{{"seed": {seed},\n{json.dumps(data.train.name)}: {json.dumps(names)},\n"samples": [\n'
    )
    write_text(path, start + ",\n".join(lines) + "\n]}\n")
