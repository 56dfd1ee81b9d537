"""Testing: whole images or a sliding window, flipped and scaled, and one confusion matrix over the set."""

from collections import defaultdict
from collections.abc import Collection, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eval_segmentation.augment import resize_image, scaled_size
from eval_segmentation.config import SegmentConfig
from eval_segmentation.metrics import confusion
from eval_segmentation.model import FCN, enlarge
from eval_segmentation.pairs import Pair, SegmentationData, read_mask
from siambench.backbone import BackboneMeta
from siambench.data.images import decode_array
from siambench.evaluation import Job
from siambench.features import normalise
from siambench.progress import bar

BATCH_PIXELS = 2_000_000  # images of one size go through together, up to this many pixels


class TestImages(Dataset[tuple[list[Tensor], Tensor]]):
    """Indexed by numbers of images of one size: uint8 (N, 3, h, w) at each scale, labels (N, H, W)."""

    __test__ = False  # not pytest's

    def __init__(self, data: SegmentationData, config: SegmentConfig) -> None:
        self.data, self.config = data, config

    def __getitem__(self, numbers: list[int]) -> tuple[list[Tensor], Tensor]:
        pairs = [self.data.val[number] for number in numbers]
        images = [decode_array(pair.image) for pair in pairs]
        labels = np.stack([read_mask(pair.mask, self.data.table) for pair in pairs])
        scaled = []
        for scale in self.config.test_scales:
            size = size_tested(pairs[0].size, self.config, scale)
            stack = np.stack([np.stack(cv2.split(resize_image(image, size))) for image in images])
            scaled.append(torch.from_numpy(stack))
        return scaled, torch.from_numpy(labels)


def size_tested(size: tuple[int, int], config: SegmentConfig, scale: float) -> tuple[int, int]:
    """(width, height) at which an image of ``size`` is tested."""
    return scaled_size(size, config.long_edge, config.short_edge, scale)


def batches(pairs: Sequence[Pair], config: SegmentConfig, processes: int = 1) -> list[list[int]]:
    """Numbers of ``pairs`` in batches of one image size each, at most ``BATCH_PIXELS`` as tested.

    Those of one size are as many as the processes, or a multiple, where there are enough of them.
    """
    by_size = defaultdict(list)
    for index, pair in enumerate(pairs):
        by_size[pair.size].append(index)
    found = []
    for size, indices in by_size.items():
        width, height = size_tested(size, config, max(config.test_scales))
        most = max(1, BATCH_PIXELS // max(width * height, size[0] * size[1]))
        rounds = -(-len(indices) // (most * processes))
        most = -(-len(indices) // (rounds * processes))
        found += [indices[i : i + most] for i in range(0, len(indices), most)]
    return found


@torch.inference_mode()
def measure(
    model: FCN,
    meta: BackboneMeta,
    data: SegmentationData,
    config: SegmentConfig,
    job: Job,
    shown: Collection[int] = (),
) -> tuple[Tensor, dict[int, np.ndarray]]:
    """Test ``model`` on ``data.val`` at the masks' own resolution, each process on its share.

    Args:
        model: in evaluation mode.
        shown: numbers of the images whose predictions are asked for.

    Returns:
        The confusion matrix (classes, classes) int64 over the whole set, and in the first process
        the predicted labels (H, W) uint8 of the ``shown`` images.
    """
    world, classes = job.world, len(data.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=job.device)
    kept: dict[int, np.ndarray] = {}
    mine = batches(data.val, config, world.size)[world.rank :: world.size]
    loader = DataLoader(
        TestImages(data, config),
        batch_size=None,  # the dataset makes batches
        sampler=mine,  # type: ignore[arg-type]
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )
    with bar(f"{job.title}: test images", sum(map(len, mine))) as progress:
        for numbers, (scaled, labels) in zip(mine, loader, strict=True):
            images = [
                normalise(x.to(job.device, non_blocking=True), meta.mean, meta.std).to(
                    memory_format=torch.channels_last
                )
                for x in scaled
            ]
            predictions = predict(model, images, (labels.shape[1], labels.shape[2]), config)
            matrix += confusion(labels.to(job.device, non_blocking=True), predictions, classes)
            for number, prediction in zip(numbers, predictions, strict=True):
                if number in shown:
                    kept[number] = prediction.to(torch.uint8).cpu().numpy()
            progress.advance(len(numbers))
    parts = world.collect(kept)
    return world.sum(matrix), {number: labels for part in parts for number, labels in part.items()}


def predict(
    model: FCN, scaled: Sequence[Tensor], size: tuple[int, int], config: SegmentConfig
) -> Tensor:
    """The labels (N, *size) of normalised images, given at every scale as (N, 3, h, w).

    Of one scale without flip, the largest logit; else the largest of the probabilities' mean over
    scales and mirror images (mmsegmentation, mmseg/models/segmentors/encoder_decoder.py, aug_test).
    """
    flips = (False, True) if config.test_flip else (False,)
    if len(scaled) == 1 and not config.test_flip:
        return enlarge(logits_of(model, scaled[0], config), size, config.align_corners).argmax(1)
    total = torch.zeros(())
    for images in scaled:
        for flip in flips:
            logits = logits_of(model, images.flip(3) if flip else images, config)
            logits = enlarge(logits, size, config.align_corners)
            total = total.to(logits) + (logits.flip(3) if flip else logits).softmax(1)
    return total.argmax(1)


def slide_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride``, the last one moved back inside."""
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def logits_of(model: FCN, images: Tensor, config: SegmentConfig) -> Tensor:
    """Logits (N, classes, h, w) of normalised ``images`` (N, 3, h, w).

    Sliding inference averages the logits of overlapping windows; a side shorter than the window is
    taken whole (mmsegmentation, mmseg/models/segmentors/encoder_decoder.py).
    """
    height, width = images.shape[2:]
    if config.inference == "whole":
        return enlarge(model(images)[0], (height, width), config.align_corners)
    total, seen = torch.zeros(0), torch.zeros(height, width, device=images.device)
    for y in slide_starts(height, config.crop, config.slide_stride):
        for x in slide_starts(width, config.crop, config.slide_stride):
            window = images[..., y : y + config.crop, x : x + config.crop]
            size = (window.shape[2], window.shape[3])
            logits = enlarge(model(window)[0], size, config.align_corners)
            if not total.numel():
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[..., y : y + config.crop, x : x + config.crop] += logits
            seen[y : y + config.crop, x : x + config.crop] += 1
    return total / seen
