"""Finding objects in the test images, as rows of a COCO result file."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader

from eval_detection.config import DetectConfig
from eval_detection.masks import paste
from eval_detection.results import Result
from eval_detection.samples import DetectionData, Sample
from eval_detection.torchvision_engine.boxes import clip, nonempty
from eval_detection.torchvision_engine.detector import Detections, Detector
from eval_detection.torchvision_engine.loader import EvalBatches, Normalise
from siambench.backbone import BackboneMeta
from siambench.evaluation import Job
from siambench.progress import bar

_MOST_TEST_IMAGES = 16  # in a batch; how many does not change what is found


@torch.inference_mode()
def predict(
    model: Detector, data: DetectionData, config: DetectConfig, job: Job, meta: BackboneMeta
) -> list[Result]:
    """Detections in every test image, in px of the original; under several processes in the first.

    Only images of one size share a batch: without other padding than the network's own, a batch
    finds what single images do. The processes take the batches in turn.
    """
    world = job.world
    # A training batch fits, so without gradients does twice its images, and twice its proposals.
    fitting = 2 * config.batch_size // world.size
    fitting = min(fitting, fitting * config.rois_per_image // config.rpn_post_nms_test)
    images = EvalBatches(data.test, config, model.divisible)
    groups = images.groups(min(max(fitting, 1), _MOST_TEST_IMAGES))
    loader = DataLoader(
        images,
        batch_size=None,  # the dataset makes batches
        sampler=groups[world.rank :: world.size],
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )
    normalise = Normalise(meta.mean, meta.std, job.device)
    results: dict[int, list[Result]] = {}
    with bar(f"{job.title}: test images", len(data.test)) as progress:
        for turn, pixels in enumerate(loader):
            together = groups[turn * world.size : (turn + 1) * world.size]
            numbers = together[world.rank]
            sizes = [images.sizes[number] for number in numbers]
            detected = model.detect(normalise(pixels, sizes), sizes)
            for number, size, found in zip(numbers, sizes, detected, strict=True):
                results[number] = _as_results(found, size, data.test[number], data.category_ids)
            progress.advance(sum(map(len, together)))
    everything = {n: rows for part in world.collect(results) for n, rows in part.items()}
    return [row for number in sorted(everything) for row in everything[number]]


def _as_results(
    found: Detections, size: tuple[int, int], sample: Sample, category_ids: Sequence[int]
) -> list[Result]:
    """Boxes scaled from the resized image back to the original, masks pasted into it."""
    height, width = sample.height, sample.width
    scale = found.boxes.new_tensor([width / size[1], height / size[0]] * 2)
    boxes = clip(found.boxes * scale, height, width)
    keep = nonempty(boxes)
    boxes = boxes[keep].cpu()
    x0, y0, x1, y1 = boxes.unbind(1)
    rows = torch.stack((x0, y0, x1 - x0, y1 - y0), dim=1).tolist()
    scores, labels = found.scores[keep].tolist(), found.labels[keep].tolist()
    results: list[Result] = [
        {"image_id": sample.id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(rows, scores, labels, strict=True)
    ]
    if found.masks is not None:
        codes = paste(found.masks[keep], boxes, height, width)
        for result, code in zip(results, codes, strict=True):
            result["segmentation"] = code
    return results
