"""Our checked samples as detectron2's dataset dictionaries, and its loaders over them."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from pycocotools import mask as rle_tools

from eval_detection.masks import Mask
from eval_detection.samples import Sample

Record = dict[str, Any]


def record(sample: Sample) -> Record:
    """One image; boxes in px, difficult objects among them, labels from 0."""
    annotations: list[Record] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
        for box, label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)
    ]
    if sample.masks:
        for annotation, mask in zip(annotations, sample.masks, strict=True):
            annotation["segmentation"] = _segmentation(mask)
    return {
        "file_name": str(sample.path),
        "image_id": sample.id,
        "height": sample.height,
        "width": sample.width,
        "annotations": annotations,
    }


def _segmentation(mask: Mask) -> Any:
    if isinstance(mask, np.ndarray):
        return rle_tools.encode(np.asfortranarray(mask))
    return mask


def mask_format(samples: Sequence[Sample]) -> str:
    """detectron2 has one format a run: bitmask, by which polygons are filled, where one mask needs it."""
    bitmaps = any(isinstance(mask, np.ndarray) for s in samples for mask in s.masks)
    return "bitmask" if bitmaps else "polygon"


def packed(samples: Sequence[Sample]) -> DatasetFromList:
    """The samples in one buffer, which loaders and their processes share."""
    return DatasetFromList(list(samples), copy=False)


def train_loader(images: DatasetFromList, cfg: CfgNode, workers: int) -> Iterable[list[Record]]:
    """This process's part of training batches without end."""
    return build_detection_train_loader(
        images,
        mapper=partial(_mapped, DatasetMapper(cfg, is_train=True)),
        sampler=TrainingSampler(len(images), seed=cfg.SEED),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=workers,
    )


def test_loader(images: DatasetFromList, cfg: CfgNode, workers: int) -> Iterable[list[Record]]:
    """This process's share of the test images, one at a time."""
    return build_detection_test_loader(
        images,
        mapper=partial(_mapped, DatasetMapper(cfg, is_train=False)),
        num_workers=workers,
    )


def _mapped(mapper: DatasetMapper, sample: Sample) -> Record:
    return mapper(record(sample))
