"""Labels of the test images: whole or in windows, in several sizes and mirrored; their confusion matrix."""

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eval_segmentation.augment import resize_image, scaled_size
from eval_segmentation.config import SegmentConfig
from eval_segmentation.metrics import confusion
from eval_segmentation.model import FCN, enlarge
from eval_segmentation.pairs import Pair, SegmentationData, read_pair
from siambench.backbone import BackboneMeta
from siambench.distributed import World
from siambench.evaluation import Job
from siambench.features import normalise
from siambench.progress import bar

BATCH_PIXELS = 2_000_000  # images of one size go through together, up to this many pixels ...
BATCH_IMAGES = 16  # ... and this many images; neither changes what is predicted


class TestImages(Dataset[tuple[list[Tensor], Tensor]]):
    """Of each image uint8 (h, w, 3) in every size of the test; and uint8 labels (H, W) as they are."""

    __test__ = False  # not pytest's

    def __init__(self, data: SegmentationData, config: SegmentConfig) -> None:
        self.data, self.config = data, config

    def __len__(self) -> int:
        return len(self.data.val)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        pair = self.data.val[index]
        image, labels = read_pair(pair, self.data.table)
        sizes = sizes_of(pair.size, self.config)
        images = [torch.from_numpy(resize_image(image, size)) for size in sizes]
        return images, torch.from_numpy(labels)


def sizes_of(size: tuple[int, int], config: SegmentConfig) -> list[tuple[int, int]]:
    """(width, height) in which an image of ``size`` is tested, one for each of the scales."""
    edges = (config.long_edge, config.short_edge)
    return [scaled_size(size, *edges, scale) for scale in config.test_scales]


def batches(pairs: Sequence[Pair], config: SegmentConfig, world: World) -> list[list[int]]:
    """This process's batches of indices into ``pairs``, each of images of one size.

    Batches are the same for any number of processes. The largest come first, each for the process
    that has the fewest pixels so far.
    """
    by_size = defaultdict(list)
    for index, pair in enumerate(pairs):
        by_size[pair.size].append(index)
    found = []
    for size, indices in by_size.items():
        pixels = max(width * height for width, height in [size, *sizes_of(size, config)])
        most = min(max(1, BATCH_PIXELS // pixels), BATCH_IMAGES)
        parts = [indices[i : i + most] for i in range(0, len(indices), most)]
        found += [(pixels * len(part), part) for part in parts]
    loads, mine = [0] * world.size, []
    for pixels, part in sorted(found, key=lambda one: -one[0]):
        rank = loads.index(min(loads))
        loads[rank] += pixels
        if rank == world.rank:
            mine.append(part)
    return mine


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
    total, seen = None, images.new_zeros(height, width)
    for y in slide_starts(height, config.crop, config.slide_stride):
        for x in slide_starts(width, config.crop, config.slide_stride):
            part = (..., slice(y, y + config.crop), slice(x, x + config.crop))
            window = images[part]
            size = (window.shape[2], window.shape[3])
            logits = enlarge(model(window)[0], size, config.align_corners)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[part] += logits
            seen[part] += 1
    assert total is not None
    return total.div_(seen)


def labels_of(
    model: FCN, images: Sequence[Tensor], size: tuple[int, int], config: SegmentConfig
) -> Tensor:
    """Predicted labels (N, H, W), int64, of images in one or several sizes.

    One version of an image has the label of its greatest logit, enlarged to the mask. Of several, and
    of mirrored ones with ``test_flip``, the softmax probabilities are summed at the mask's resolution
    (mmsegmentation, ``aug_test`` of 0.x and SegTTAModel of 1.x).

    Args:
        images: of each size, normalised (N, 3, h, w).
        size: (H, W) of the masks.
    """
    if len(images) == 1 and not config.test_flip:
        logits = logits_of(model, images[0], config)
        # image by image: a whole batch at the mask's resolution would double the memory
        parts = [enlarge(one, size, config.align_corners).argmax(1) for one in logits.split(1)]
        return torch.cat(parts)
    total = None
    for x in images:
        for mirrored in (False, True) if config.test_flip else (False,):
            logits = logits_of(model, x.flip(3) if mirrored else x, config)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *size)
            for sums, one in zip(total.split(1), logits.split(1), strict=True):
                upright = one.flip(3) if mirrored else one
                sums += enlarge(upright, size, config.align_corners).softmax(1)
    assert total is not None
    return total.argmax(1)


@torch.inference_mode()
def measure(
    model: FCN,
    meta: BackboneMeta,
    data: SegmentationData,
    config: SegmentConfig,
    job: Job,
    shown: Collection[int],
) -> tuple[Tensor, dict[int, np.ndarray]]:
    """Predict ``data.val`` at the masks' resolution, in float32, shared by the processes of ``job``.

    Returns:
        In every process the confusion matrix of all images, int64 (classes, classes); in the first
        the predicted labels, uint8 (H, W), of those whose index in ``data.val`` is in ``shown``.
    """
    world, classes = job.world, len(data.classes)
    mine = batches(data.val, config, world)
    loader = DataLoader(
        TestImages(data, config),
        batch_sampler=mine,
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=job.device)
    kept: dict[int, np.ndarray] = {}
    model.eval()
    title = f"{job.title}: test images" + (f", 1 of {world.size} parts" if world.size > 1 else "")
    with bar(title, sum(map(len, mine))) as progress:
        for indices, (images, labels) in zip(mine, loader, strict=True):
            views = [
                normalise(
                    image.to(job.device, non_blocking=True).permute(0, 3, 1, 2), meta.mean, meta.std
                )
                for image in images
            ]
            size = (labels.shape[1], labels.shape[2])
            predicted = labels_of(model, views, size, config)
            matrix += confusion(labels.to(job.device, non_blocking=True), predicted, classes)
            for index, one in zip(indices, predicted, strict=True):
                if index in shown:
                    kept[index] = one.to(torch.uint8).cpu().numpy()
            progress.advance(len(indices))
    everything = {index: one for part in world.collect(kept) for index, one in part.items()}
    return world.sum(matrix), dict(sorted(everything.items()))
