"""Features as a network's last layer gives them: non-negative, far from 0, of decaying spectrum, and labels."""

from dataclasses import dataclass

import numpy as np
import torch

from eval_lowshot.batched import Batched
from eval_lowshot.eigenbasis import eigenbasis
from eval_lowshot.features import unit_features
from eval_lowshot.liblinear import Liblinear
from eval_lowshot.samples import Sample, padded


@dataclass(frozen=True)
class Made:
    """Both splits: features (n, D) and int8 labels (n, classes) of 1, -1 and 0, or class numbers (n,)."""

    x: np.ndarray
    labels: np.ndarray
    x_test: np.ndarray
    labels_test: np.ndarray

    def batched(self, device: str = "cpu") -> Batched:
        parts = (unit_features(x, "x", "float32", constant=True) for x in (self.x, self.x_test))
        return Batched(eigenbasis(*parts, torch.device(device)))

    def liblinear(self) -> Liblinear:
        return Liblinear(*(unit_features(x, "x", "float64") for x in (self.x, self.x_test)))


def made_features(
    images: int,
    size: int,
    classes: int = 4,
    test_images: int = 300,
    single: bool = False,
    signal: float = 3.0,
    seed: int = 0,
) -> Made:
    """Draw them; with ``single`` every image has one label, else any number, a twentieth "difficult"."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, size + 1) ** -0.7
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0] * (spectrum / np.linalg.norm(spectrum))
    mean = np.abs(rng.normal(size=size)) / size**0.5
    places = min(size, 40)
    prototypes = rng.normal(size=(classes, places))
    prototypes *= signal / np.linalg.norm(prototypes, axis=1, keepdims=True)
    splits = []
    for count in (images, test_images):
        if single:
            labels = np.arange(count) % classes
            present = labels[:, None] == np.arange(classes)
        else:
            present = rng.random((count, classes)) < 0.2
            difficult = ~present & (rng.random(present.shape) < 0.05)
            labels = np.where(present, 1, np.where(difficult, 0, -1)).astype(np.int8)
        latent = rng.normal(size=(count, size))
        latent[:, :places] += present * rng.uniform(0.7, 1.3, present.shape) @ prototypes
        splits += [np.maximum(0.8 * latent @ basis.T + mean, 0).astype(np.float32), labels]
    return Made(*splits)


def drawn(made: Made, k: int, ratio: int, seed: int = 0) -> tuple[Sample, np.ndarray]:
    """A sample of several labels an image, and the rows of train that it has."""
    rng = np.random.default_rng(seed)
    parts = []
    for column in made.labels.T:
        rows = [
            rng.choice(np.flatnonzero(column == sign), count, replace=False)
            for sign, count in ((1, k), (-1, k * ratio))
        ]
        rows = np.sort(np.concatenate(rows))
        parts.append((rows, column[rows]))
    sample = padded(parts, k, seed)
    return sample, sample.rows
