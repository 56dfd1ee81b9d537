"""Pooled features of both splits, from the feature cache, as the SVMs see them."""

import numpy as np
from torchvision.transforms import v2

from eval_lowshot.config import SvmConfig
from eval_lowshot.voc import TEST, TRAIN, VocClassification
from siambench.backbone import Backbone
from siambench.cache import Tables, cached_features
from siambench.errors import UserError
from siambench.evaluation import Job
from siambench.features import (
    ImageFiles,
    LayerFeatures,
    Transform,
    center_crop_transform,
    squash_transform,
)


def image_transform(config: SvmConfig) -> Transform:
    """What a picture goes through before the backbone; the fields of ``config`` say it in words."""
    if config.transform == "centercrop":
        return center_crop_transform(config.resize, config.size)
    squash = squash_transform(config.size)
    return v2.Compose([v2.Resize(config.resize), squash]) if config.resize else squash


def split_features(
    backbone: Backbone, data: VocClassification, config: SvmConfig, job: Job
) -> Tables:
    """Features of every layer of both splits; full and low-shot, and all trials, share them."""
    transform = image_transform(config)
    pictures = {
        TRAIN: ImageFiles(data.train.images, transform),
        TEST: ImageFiles(data.test.images, transform),
    }
    encoder = LayerFeatures(backbone, config.layers, config.size, config.precision)
    return cached_features(encoder, pictures, config.storage, job)


def unit_features(tables: Tables, split: str, layer: str) -> np.ndarray:
    """Features as the SVMs see them: float64, x / (‖x‖ + 1e-5).

    Source: fair_self_supervision_benchmark, svm_helper.load_input_data and normalize_features.

    Returns:
        (images, D).

    Raises:
        UserError: the features are the same for every image.
    """
    x = np.asarray(tables[split, layer], np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-5
    if np.ptp(x, axis=0).max() < 1e-6:  # float32 rounding
        raise UserError(
            f"the backbone's {layer} is the same for all {len(x)} images of {split}; it collapsed, "
            "and there is nothing to train an SVM on"
        )
    return x
