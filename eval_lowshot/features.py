"""Pooled features of both splits, extracted once per backbone and data set and kept on disk."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from eval_lowshot.config import SvmConfig
from eval_lowshot.voc import TEST, TRAIN, Split, VocClassification
from siambench.backbone import Backbone
from siambench.errors import UserError
from siambench.evaluation import Job
from siambench.features import (
    ImageFiles,
    Transform,
    center_crop_transform,
    extract,
    squash_transform,
)
from siambench.files import atomic_path, digest_of
from siambench.pooling import pool_layer

BATCH = 64
Files = dict[tuple[str, str], Path]  # (split, layer) to a float32 array (images, D)


def image_transform(config: SvmConfig) -> Transform:
    """What a picture goes through before the backbone; the fields of ``config`` say it in words."""
    if config.transform == "centercrop":
        return center_crop_transform(config.resize, config.size)
    squash = squash_transform(config.size)
    return v2.Compose([v2.Resize(config.resize), squash]) if config.resize else squash


def feature_files(
    backbone: Backbone, data: VocClassification, config: SvmConfig, job: Job
) -> Files:
    """Features of every layer asked for, from disk or in one pass over each split.

    The files lie beside the scratch folders of the run, in ``svm-features``: full and low-shot, and
    all trials, share them. They may be deleted at any time.
    """
    key = digest_of(
        [backbone.sha256, data.info.fingerprint, config.transform, config.resize, config.size]
    )[:16]
    folder = job.folder.parent / "svm-features"
    files: Files = {}
    for name, split in ((TRAIN, data.train), (TEST, data.test)):
        paths: dict[str, Path] = {
            layer: folder / f"{key}-{name}-{layer}.npy" for layer in config.layers
        }
        missing = {layer: path for layer, path in paths.items() if not path.is_file()}
        if missing:
            _extract(backbone, split, config, job, missing, f"{job.title}: features of {name}")
        files.update({(name, layer): path for layer, path in paths.items()})
    return files


def _extract(
    backbone: Backbone,
    split: Split,
    config: SvmConfig,
    job: Job,
    missing: dict[str, Path],
    title: str,
) -> None:
    widths: list[int] = []

    def forward(images: Tensor) -> Tensor:
        stages = backbone.stages(images)
        pooled = [pool_layer(stages, layer) for layer in missing]
        widths[:] = [p.shape[1] for p in pooled]
        return torch.cat(pooled, dim=1)

    rows = extract(
        forward,
        ImageFiles(split.paths, image_transform(config)),
        mean=backbone.meta.mean,
        std=backbone.meta.std,
        device=job.device,
        batch_size=BATCH,
        workers=job.workers,
        title=title,
    )
    ends = np.cumsum(widths)
    for path, start, end in zip(missing.values(), ends - widths, ends, strict=True):
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.save(handle, rows[:, start:end])


def unit_features(files: Files, split: str, layer: str) -> np.ndarray:
    """Features as the SVMs see them: float64, x / (‖x‖ + 1e-5).

    Source: fair_self_supervision_benchmark, svm_helper.load_input_data and normalize_features.

    Returns:
        (images, D).

    Raises:
        UserError: the features are not finite, or the same for every image.
    """
    x = np.load(files[split, layer]).astype(np.float64)
    if not np.isfinite(x).all():
        raise UserError(f"the backbone's {layer} on {split} holds NaN or infinity; it diverged")
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-5
    if np.ptp(x, axis=0).max() < 1e-6:  # float32 rounding
        raise UserError(
            f"the backbone's {layer} is the same for all {len(x)} images of {split}; it collapsed, "
            "and there is nothing to train an SVM on"
        )
    return x
