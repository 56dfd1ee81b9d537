"""Testing: whole images or a sliding window, and the confusion matrix over the set."""

from collections import defaultdict
from collections.abc import Sequence

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


class TestImages(Dataset[tuple[Tensor, Tensor]]):
    """uint8 images (3, h, w) scaled as the test wants them, and uint8 labels (H, W) as they are."""

    __test__ = False  # not pytest's

    def __init__(self, data: SegmentationData, config: SegmentConfig) -> None:
        self.data, self.edges = data, (config.long_edge, config.short_edge)

    def __len__(self) -> int:
        return len(self.data.val)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.data.val[index]
        pixels = resize_image(decode_array(pair.image), scaled_size(pair.size, *self.edges))
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(
            read_mask(pair.mask, self.data.table)
        )


def batches(pairs: Sequence[Pair], long_edge: int, short_edge: int) -> list[list[int]]:
    """Indices into ``pairs`` in batches of one image size each and ``BATCH_PIXELS`` scaled pixels."""
    by_size = defaultdict(list)
    for index, pair in enumerate(pairs):
        by_size[pair.size].append(index)
    found = []
    for size, indices in by_size.items():
        width, height = scaled_size(size, long_edge, short_edge)
        most = max(1, BATCH_PIXELS // (width * height))
        found += [indices[i : i + most] for i in range(0, len(indices), most)]
    return found


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


@torch.inference_mode()
def confusion_matrix(
    model: FCN, meta: BackboneMeta, data: SegmentationData, config: SegmentConfig, job: Job
) -> Tensor:
    """The confusion matrix (classes, classes) of ``model`` over ``data.val``, at full resolution."""
    classes = len(data.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=job.device)
    loader = DataLoader(
        TestImages(data, config),
        batch_sampler=batches(data.val, config.long_edge, config.short_edge),
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )
    model.eval()
    with bar(f"{job.title}: test images", len(data.val)) as progress:
        for images, labels in loader:
            x = normalise(images.to(job.device, non_blocking=True), meta.mean, meta.std)
            logits = logits_of(model, x.to(memory_format=torch.channels_last), config)
            size = (labels.shape[1], labels.shape[2])
            predictions = enlarge(logits, size, config.align_corners).argmax(1)
            matrix += confusion(labels.to(job.device), predictions, classes)
            progress.advance(len(labels))
    return matrix
