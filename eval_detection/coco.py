"""Detection data in COCO's layout: ``{split}/*.jpg`` and ``annotations/instances_{split}.json``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from eval_detection.config import DetectConfig
from eval_detection.masks import Mask
from eval_detection.samples import DetectionData, Problems, Sample, as_sample, check_box, finish
from siambench.errors import UserError
from siambench.files import existing, sha256_file

# train2017 itself holds two boxes of height 0 (github.com/cocodataset/cocoapi/issues/355).
_KNOWN_FLAT = {918, 2206849}


def open_coco(config: DetectConfig) -> DetectionData:
    """Read the training and test sets named in ``config`` and check every annotation.

    Crowd regions are left out of training; at the evaluation pycocotools ignores them.

    Raises:
        UserError: a file is missing or an annotation wrong; all problems in one line.
    """
    root = Path(config.data)
    if len(config.train_sets) != 1:
        raise UserError(
            f"train_sets: COCO's layout has one training set, not {len(config.train_sets)}; "
            "use e.g. [train2017]"
        )
    split = config.train_sets[0]
    if split == config.test_set:
        raise UserError(f"the training and the test set are both {split}")
    problems = Problems()
    jsons = [root / "annotations" / f"instances_{name}.json" for name in (split, config.test_set)]
    contents = [_load(path) for path in jsons]
    categories, test_categories = (_categories(c, p) for c, p in zip(contents, jsons, strict=True))
    if categories != test_categories:
        raise UserError(f"{jsons[0]} and {jsons[1]} do not have the same categories")
    ids = list(categories)
    train, test = (
        _read(root / name, path, content, ids, config.mask, problems)
        for name, path, content in zip((split, config.test_set), jsons, contents, strict=True)
    )
    problems.stop("COCO annotations")
    return finish(
        root,
        (_short(split), _short(config.test_set)),
        list(categories.values()),
        ids,
        train,
        test,
        skip_bad=config.skip_bad,
        test_json=jsons[1],
        extra=[sha256_file(path) for path in jsons],
    )


def _short(split: str) -> str:
    """``train2017`` as ``train``: the year is the data set's."""
    return split.rstrip("0123456789") or split


def _load(path: Path) -> dict[str, Any]:
    hint = "point --data at the folder that holds train2017, val2017 and annotations"
    path = existing(path, "COCO annotations", hint=hint)
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); unpack it again") from None
    absent = [k for k in ("images", "annotations", "categories") if not content.get(k)]
    if absent:
        raise UserError(f"{path} has no {', no '.join(absent)}")
    return content


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Category id to name, by rising id: the label order of detectron2."""
    found = {int(c["id"]): str(c["name"]) for c in content["categories"]}
    if len(found) != len(content["categories"]):
        raise UserError(f"{path}: a category id is used twice")
    return dict(sorted(found.items()))


def _read(
    folder: Path,
    path: Path,
    content: dict[str, Any],
    ids: list[int],
    with_masks: bool,
    problems: Problems,
) -> list[Sample]:
    """One split's samples, by rising image id."""
    label_of = {category: label for label, category in enumerate(ids)}
    images = {image["id"]: image for image in content["images"]}
    if len(images) != len(content["images"]):
        problems.add(f"{path}: an image id is used twice")
    things: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for thing in content["annotations"]:
        where = f"{path}, annotation {thing.get('id')}"
        if thing["image_id"] not in images:
            problems.add(f"{where}: image {thing['image_id']} is not in the file")
        elif thing["category_id"] not in label_of:
            problems.add(f"{where}: category {thing['category_id']} is not in the file")
        elif not thing.get("iscrowd") and thing.get("id") not in _KNOWN_FLAT:
            things[thing["image_id"]].append(thing)
    samples = []
    for number, image in sorted(images.items()):
        height, width = int(image["height"]), int(image["width"])
        boxes, labels, masks = [], [], []
        for thing in things[number]:
            where = f"{path}, annotation {thing.get('id')}"
            x, y, w, h = thing["bbox"]
            box = [x, y, x + w, y + h]
            if not check_box(box, height, width, where, problems):
                continue
            boxes.append(box)
            labels.append(label_of[thing["category_id"]])
            if with_masks:
                masks.append(_mask(thing.get("segmentation"), height, width, where, problems))
        name = folder / image["file_name"]
        samples.append(as_sample(name, number, height, width, boxes, labels, masks=masks))
    return samples


def _mask(segmentation: Any, height: int, width: int, where: str, problems: Problems) -> Mask:
    """Polygons as arrays; run-length codes decoded."""
    if isinstance(segmentation, dict):
        code = segmentation
        if isinstance(code["counts"], list):
            code = rle_tools.frPyObjects(code, height, width)
        return rle_tools.decode(code)
    polygons = [np.asarray(p, np.float64) for p in segmentation or []]
    good = [p for p in polygons if p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0]
    if not good:
        problems.add(f"{where}: no polygon of three points or more")
    return good
