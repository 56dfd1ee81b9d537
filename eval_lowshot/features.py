"""Pooled features of both splits, from the feature cache, and the solvers that take them."""

import numpy as np
import torch
from torchvision.transforms import v2

from eval_lowshot.batched import Batched
from eval_lowshot.config import SvmConfig
from eval_lowshot.data import SvmData
from eval_lowshot.eigenbasis import eigenbasis
from eval_lowshot.liblinear import Liblinear
from eval_lowshot.solution import Solver
from siambench.backbone import Backbone
from siambench.cache import Tables, cached_features
from siambench.data.classification import Split
from siambench.data.pictures import ChosenImages
from siambench.errors import UserError
from siambench.evaluation import Job
from siambench.features import (
    ImageFiles,
    LayerFeatures,
    Transform,
    center_crop_transform,
    squash_transform,
)

_CHUNK = 4096  # rows that are normalised at a time
_FLOAT32_SPREAD = 5e-3  # a random network's features differ ten times as much


def image_transform(config: SvmConfig) -> Transform:
    """What a picture goes through before the backbone; the fields of ``config`` say it in words."""
    if config.transform == "centercrop":
        return center_crop_transform(config.resize, config.size)
    squash = squash_transform(config.size)
    return v2.Compose([v2.Resize(config.resize), squash]) if config.resize else squash


def split_features(
    backbone: Backbone, data: SvmData, rows: np.ndarray, config: SvmConfig, job: Job
) -> Tables:
    """Features of every layer of the images ``rows`` of train, and of test."""
    transform = image_transform(config)
    whole = len(rows) == len(data.train.images)
    train = data.train.images if whole else ChosenImages(data.train.images, rows)
    pictures = {
        data.train.name: ImageFiles(train, transform),
        data.test.name: ImageFiles(data.test.images, transform),
    }
    encoder = LayerFeatures(backbone, config.layers, config.size, config.precision)
    return cached_features(encoder, pictures, config.storage, job)


def make_solver(
    tables: Tables, layer: str, data: SvmData, config: SvmConfig, device: torch.device
) -> Solver:
    """The solver that ``config`` names, with the features of a layer.

    Raises:
        UserError: the features of a split are not finite, or the same for every image.
    """

    def features(split: Split, dtype: str, constant: bool = False) -> np.ndarray:
        return unit_features(
            tables[split.name, layer], f"{split.name}'s {layer}", dtype, constant=constant
        )

    if config.solver == "liblinear":
        return Liblinear(features(data.train, "float64"), features(data.test, "float64"))
    return Batched(
        eigenbasis(
            features(data.train, "float32", True), features(data.test, "float32", True), device
        )
    )


def unit_features(table: np.ndarray, name: str, dtype: str, constant: bool = False) -> np.ndarray:
    """Features as the SVMs see them: x / (‖x‖ + 1e-5), computed in float64.

    Source: fair_self_supervision_benchmark, svm_helper.load_input_data and normalize_features.

    Args:
        table: (images, D).
        name: for the message.
        dtype: of the result.
        constant: with a last column of ones, liblinear's ``intercept_scaling=1``.

    Returns:
        (images, D), or (images, D + 1).

    Raises:
        UserError: the features are not finite, the same for every image, or too nearly so for float32.
    """
    count, size = table.shape
    x = np.ones((count, size + constant), dtype)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for start in range(0, count, _CHUNK):
        part = np.asarray(table[start : start + _CHUNK], np.float64)
        part /= np.linalg.norm(part, axis=1, keepdims=True) + 1e-5
        x[start : start + _CHUNK, :size] = part
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
    spread = (high - low).max()
    if not np.isfinite(spread):
        raise UserError(f"{name} has features that are not finite; the backbone is not sound")
    if spread < 1e-6:  # float32 rounding
        raise UserError(
            f"{name} is the same for all {count} images; the backbone collapsed, and there is nothing "
            "to train an SVM on"
        )
    if x.dtype == np.float32 and spread < _FLOAT32_SPREAD:
        raise UserError(
            f"{name} differs by {spread:.0e} at most between images: the backbone has all but collapsed, "
            "and the batched solver's float32 is too coarse for that; use --solver liblinear"
        )
    return x
