"""Annotated images in memory, and what every data set passes before training."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from eval_detection.masks import Mask
from siambench.data.images import dataset_name, inspect_images
from siambench.errors import UserError, first_line
from siambench.files import digest_of
from siambench.problems import Problems
from siambench.record import DatasetInfo

_BLOCK = 1024  # files per task of a thread
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on swap width and height


@dataclass(frozen=True)
class Sample:
    """One image and what is in it.

    Attributes:
        path: the image.
        id: as the data set names it: an integer in COCO, the file's stem in VOC.
        height, width: px, as annotated; 0 while reading, where the annotation has none.
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
    masks: Sequence[Mask] = field(default_factory=list)


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
        train_left_out, test_left_out: places in the JSONs' lists of annotations that are wrong and, under
            ``skip_bad``, not there.
    """

    classes: list[str]
    category_ids: list[int]
    train: list[Sample]
    test: list[Sample]
    info: DatasetInfo
    train_json: Path | None = None
    test_json: Path | None = None
    train_left_out: frozenset[int] = frozenset()
    test_left_out: frozenset[int] = frozenset()


def as_sample(
    path: Path,
    identity: int | str,
    height: int,
    width: int,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    difficult: Sequence[bool] | None = None,
    masks: Sequence[Mask] = (),
) -> Sample:
    """A :class:`Sample` from lists or arrays, its boxes (N, 4) clipped to the image."""
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Sample(
        path=path,
        id=identity,
        height=height,
        width=width,
        boxes=array.clip(0, np.asarray([width, height, width, height], np.float32)),
        labels=np.asarray(labels, np.int64),
        difficult=np.asarray(difficult or [False] * len(labels), bool),
        masks=masks,
    )


def check_pictures(
    samples: list[Sample], problems: Problems
) -> tuple[list[Sample], dict[Path, int]]:
    """The samples whose picture can be read and has the annotated size; bytes of each file.

    What is wrong with the others is noted. A sample without a size has no usable annotation: its
    picture is looked at, and it is left out.
    """
    found, facts = inspect_images([s.path for s in samples], problems.skip_bad)
    found = [text.partition("; replace it")[0] for text in found]
    known = [i for i, s in enumerate(samples) if s.height and not found[i]]

    def compare(start: int) -> None:
        for index in known[start : start + _BLOCK]:
            found[index] = _differing_size(samples[index])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(compare, range(0, len(known), _BLOCK)))
    for sample, text in zip(samples, found, strict=True):
        if text:
            problems.image(f"image {sample.id}", text.removeprefix("image "))
    kept = [s for s, text in zip(samples, found, strict=True) if s.height and not text]
    return kept, {s.path: size for s, size in zip(samples, facts.size.tolist(), strict=True)}


def _differing_size(sample: Sample) -> str:
    """What is wrong with the upright image's size, as its header has it; ``""``: nothing."""
    try:
        with Image.open(sample.path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{sample.path} cannot be decoded ({first_line(error)})"
    if (width, height) == (sample.width, sample.height):
        return ""
    return (
        f"{sample.path} is {width} × {height} px, its annotation says {sample.width} × "
        f"{sample.height}"
    )


def finish(
    root: Path,
    splits: tuple[str, str],
    classes: list[str],
    category_ids: list[int],
    train: list[Sample],
    test: list[Sample],
    problems: Problems,
    *,
    jsons: tuple[Path | None, Path | None] = (None, None),
    left_out: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
    extra: object = None,
) -> DetectionData:
    """Check the pictures, drop training images without boxes, and describe the whole.

    Args:
        root: the data set's folder.
        splits: names of the training and test split, the keys of the counts.
        problems: what was found so far, in both.
        jsons: COCO's annotations of the training and the test set.
        left_out: of both, the annotations that are wrong and not used.
        extra: whatever else decides the result, e.g. the digests of annotation files.

    Raises:
        UserError: there are problems that ``skip_bad`` does not let pass, or nothing is left to train
            or test on.
    """
    kept, sizes = check_pictures(train + test, problems)
    problems.stop(str(root))
    usable = {id(sample) for sample in kept}
    parts = [[s for s in part if id(s) in usable] for part in (train, test)]
    counts = {name: len(part) for name, part in zip(splits, parts, strict=True)}
    name = dataset_name(root, counts)
    with_boxes = [s for s in parts[0] if len(s.boxes)]
    if not with_boxes:
        raise UserError(f"{root}: no image of the training set {splits[0]} has a box")
    if not any(len(s.boxes) for s in parts[1]):
        raise UserError(f"{root}: no image of the test set {splits[1]} has a box")
    if all(s.difficult.all() for s in parts[1]):
        raise UserError(f"{root}: every object of the test set {splits[1]} is difficult")
    counts["classes"] = len(classes)
    for split, part in zip(splits, parts, strict=True):
        counts[f"{split}_boxes"] = sum(len(s.boxes) for s in part)
        if jsons[0] is None:  # VOC marks difficult objects; its official counts are without them
            counts[f"{split}_not_difficult"] = sum(int((~s.difficult).sum()) for s in part)
    counts["skipped"] = len(train) + len(test) - len(kept)
    if problems.objects:
        counts["skipped_objects"] = len(problems.objects)
    rows = [
        [
            s.path.relative_to(root).as_posix(),
            sizes[s.path],
            s.labels.tolist(),
            s.boxes.round(2).tolist(),
            s.difficult.tolist(),
        ]
        for s in kept
    ]
    info = DatasetInfo(name, digest_of([rows, classes, extra]), counts)
    return DetectionData(classes, category_ids, with_boxes, parts[1], info, *jsons, *left_out)
