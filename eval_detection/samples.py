"""Annotated images in memory, and the checks that every data set passes before training."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from eval_detection.masks import Mask
from siambench.data.images import check_images, dataset_name
from siambench.errors import UserError
from siambench.files import digest_of
from siambench.record import DatasetInfo

_SLACK = 1.0  # px a box may stick out: annotation tools round; it is clipped, as detectron2 does
_MOST_SHOWN = 5
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on swap width and height


@dataclass(frozen=True)
class Sample:
    """One image and what is in it.

    Attributes:
        path: the image.
        id: as the data set names it: an integer in COCO, the file's stem in VOC.
        height, width: px, as annotated.
        boxes: (N, 4) float32, x0 y0 x1 y1 with 0 at the image's left or upper edge.
        labels: (N,) int64, from 0.
        difficult: (N,) bool: trained on, ignored by the evaluation (VOC).
        masks: one per box, or empty.
    """

    path: Path
    id: int | str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    masks: list[Mask] = field(default_factory=list)


@dataclass(frozen=True)
class DetectionData:
    """Everything a run reads.

    Attributes:
        classes: names, in label order.
        category_ids: the data set's number of each class.
        train: images with at least one box (detectron2, DATALOADER.FILTER_EMPTY_ANNOTATIONS).
        test: all images of the test set that can be read.
        train_json, test_json: COCO's annotations of both; None for VOC.
        info: name, fingerprint and counts.
    """

    classes: list[str]
    category_ids: list[int]
    train: list[Sample]
    test: list[Sample]
    info: DatasetInfo
    train_json: Path | None = None
    test_json: Path | None = None


class Problems:
    """Collects what is wrong with a data set, to report all of it at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, text: str) -> None:
        """Note one problem: which file or id, and what."""
        self.found.append(text)

    def stop(self, what: str) -> None:
        """Raise UserError in one line if anything was found."""
        if self.found:
            shown = "; ".join(self.found[:_MOST_SHOWN])
            more = len(self.found) - _MOST_SHOWN
            tail = f"; and {more} more problems" if more > 0 else ""
            raise UserError(f"{what}: {shown}{tail}; correct the annotations")


def check_box(
    box: Sequence[float], height: int, width: int, where: str, problems: Problems
) -> bool:
    """Whether ``box`` (x0, y0, x1, y1) lies in its image and has an area; notes it if not."""
    x0, y0, x1, y1 = box
    shown = "(" + ", ".join(f"{v:g}" for v in box) + ")"
    if not np.isfinite(box).all() or x1 <= x0 or y1 <= y0:
        problems.add(f"{where}: box {shown} has no area")
        return False
    if min(x0, y0) < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK:
        problems.add(f"{where}: box {shown} is outside its image ({width} × {height} px)")
        return False
    return True


def as_sample(
    path: Path,
    identity: int | str,
    height: int,
    width: int,
    boxes: list[list[float]],
    labels: list[int],
    difficult: list[bool] | None = None,
    masks: list[Mask] | None = None,
) -> Sample:
    """A :class:`Sample` from lists, its boxes clipped to the image."""
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    array = array.clip(0, np.asarray([width, height, width, height], np.float32))
    return Sample(
        path=path,
        id=identity,
        height=height,
        width=width,
        boxes=array,
        labels=np.asarray(labels, np.int64),
        difficult=np.asarray(difficult or [False] * len(labels), bool),
        masks=masks or [],
    )


def check_pictures(samples: list[Sample], skip_bad: bool) -> list[Sample]:
    """The samples whose image can be read and has the annotated size.

    Raises:
        UserError: one is missing, truncated or of another size, and ``skip_bad`` is False.
    """
    good = check_images([s.path for s in samples], skip_bad)
    kept = [s for s, ok in zip(samples, good, strict=True) if ok]
    problems = Problems()
    with ThreadPoolExecutor(8) as pool:
        for sample, size in zip(kept, pool.map(_size, kept, chunksize=64), strict=True):
            if size != (sample.width, sample.height):
                problems.add(
                    f"{sample.path} is {size[0]} × {size[1]} px, its annotation says "
                    f"{sample.width} × {sample.height}"
                )
    problems.stop("image sizes")
    return kept


def _size(sample: Sample) -> tuple[int, int]:
    """Width and height of the upright image, from its header."""
    with Image.open(sample.path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def finish(
    root: Path,
    splits: tuple[str, str],
    classes: list[str],
    category_ids: list[int],
    train: list[Sample],
    test: list[Sample],
    *,
    skip_bad: bool,
    jsons: tuple[Path | None, Path | None] = (None, None),
    extra: object = None,
) -> DetectionData:
    """Check the pictures, drop training images without boxes, and describe the whole.

    Args:
        root: the data set's folder.
        splits: names of the training and test split, the keys of the counts.
        jsons: COCO's annotations of the training and the test set.
        extra: whatever else decides the result, e.g. the digests of annotation files.

    Raises:
        UserError: a picture is bad, or nothing is left to train or test on.
    """
    readable = [check_pictures(part, skip_bad) for part in (train, test)]
    counts = {name: len(part) for name, part in zip(splits, readable, strict=True)}
    name = dataset_name(root, counts)
    with_boxes = [s for s in readable[0] if len(s.boxes)]
    if not with_boxes:
        raise UserError(f"{root}: no image of the training set {splits[0]} has a box")
    if not sum(len(s.boxes) for s in readable[1]):
        raise UserError(f"{root}: no image of the test set {splits[1]} has a box")
    counts["classes"] = len(classes)
    counts[f"{splits[0]}_boxes"] = sum(len(s.boxes) for s in with_boxes)
    counts[f"{splits[1]}_boxes"] = sum(len(s.boxes) for s in readable[1])
    counts["skipped"] = len(train) + len(test) - sum(len(part) for part in readable)
    rows = [
        [
            s.path.relative_to(root).as_posix(),
            s.path.stat().st_size,
            s.labels.tolist(),
            s.boxes.round(2).tolist(),
            s.difficult.tolist(),
        ]
        for s in (*readable[0], *readable[1])
    ]
    info = DatasetInfo(name, digest_of([rows, classes, extra]), counts)
    return DetectionData(classes, category_ids, with_boxes, readable[1], info, *jsons)
