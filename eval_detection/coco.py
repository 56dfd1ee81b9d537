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
_CATEGORY = {"id": int, "name": (str, int)}
_IMAGE = {"id": int, "file_name": str, "height": int, "width": int}
_THING = {"id": int, "image_id": int, "category_id": int, "bbox": list}
_TESTED = {"area": (int, float), "iscrowd": int}  # pycocotools reads these at the test
Kinds = dict[str, Any]  # what a field's value must be an instance of


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
    kinds: Kinds = {**_THING, "segmentation": (list, dict)} if config.mask else _THING
    train, test = (
        _read(root / name, path, content, ids, kinds | more, problems)
        for name, path, content, more in zip(
            (split, config.test_set), jsons, contents, ({}, _TESTED), strict=True
        )
    )
    problems.stop("COCO annotations")
    names = (_short(split), _short(config.test_set))
    return finish(
        root,
        names if names[0] != names[1] else (split, config.test_set),
        list(categories.values()),
        ids,
        train,
        test,
        skip_bad=config.skip_bad,
        jsons=(jsons[0], jsons[1]),
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
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not images, annotations and categories; "
            "is it a result file?"
        )
    lists = ("images", "annotations", "categories")
    absent = [k for k in lists if not (isinstance(content.get(k), list) and content[k])]
    if absent:
        raise UserError(f"{path} has no {', no '.join(absent)}")
    return content


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Category id to name, by rising id: the label order of detectron2."""
    problems = Problems()
    for place, category in enumerate(content["categories"]):
        _is_whole(category, _CATEGORY, path, "category", place, problems)
    problems.stop("COCO categories")
    found: dict[int, str] = {c["id"]: str(c["name"]) for c in content["categories"]}
    if len(found) != len(content["categories"]):
        raise UserError(f"{path}: a category id is used twice")
    return dict(sorted(found.items()))


def _is_whole(
    entry: Any, kinds: Kinds, path: Path, what: str, place: int, problems: Problems
) -> bool:
    """Whether ``entry``, the ``place``-th of its list, has every field of ``kinds``; notes if not."""
    if not isinstance(entry, dict):
        problems.add(f"{path}, {what} number {place + 1} is not an object")
        return False
    wrong = [k for k, kind in kinds.items() if not isinstance(entry.get(k), kind)]
    if wrong:
        named = entry["id"] if isinstance(entry.get("id"), int) else f"number {place + 1}"
        texts = [f"{k} is {str(entry[k])[:40]!r}" if k in entry else f"no {k}" for k in wrong]
        problems.add(f"{path}, {what} {named}: {', '.join(texts)}")
    return not wrong


def _read(
    folder: Path,
    path: Path,
    content: dict[str, Any],
    ids: list[int],
    kinds: Kinds,
    problems: Problems,
) -> list[Sample]:
    """One split's samples, by rising image id; ``kinds``: the fields of its annotations."""
    label_of = {category: label for label, category in enumerate(ids)}
    for place, image in enumerate(content["images"]):
        _is_whole(image, _IMAGE, path, "image", place, problems)
    problems.stop("COCO images")
    images = {image["id"]: image for image in content["images"]}
    if len(images) != len(content["images"]):
        problems.add(f"{path}: an image id is used twice")
    things: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for place, thing in enumerate(content["annotations"]):
        if not _is_whole(thing, kinds, path, "annotation", place, problems):
            continue
        where = f"{path}, annotation {thing['id']}"
        if thing["image_id"] not in images:
            problems.add(f"{where}: image {thing['image_id']} is not in the file")
        elif thing["category_id"] not in label_of:
            problems.add(f"{where}: category {thing['category_id']} is not in the file")
        elif not (len(thing["bbox"]) == 4 and all(map(_is_number, thing["bbox"]))):
            problems.add(f"{where}: bbox {str(thing['bbox'])[:40]} is not four numbers")
        elif not thing.get("iscrowd") and not _is_known_flat(thing):
            things[thing["image_id"]].append(thing)
    samples = []
    for number, image in sorted(images.items()):
        height, width = image["height"], image["width"]
        boxes, labels, masks = [], [], []
        for thing in things[number]:
            where = f"{path}, annotation {thing['id']}"
            x, y, w, h = thing["bbox"]
            box = [x, y, x + w, y + h]
            if not check_box(box, height, width, where, problems):
                continue
            boxes.append(box)
            labels.append(label_of[thing["category_id"]])
            if "segmentation" in kinds:
                masks.append(_mask(thing["segmentation"], height, width, where, problems))
        name = folder / image["file_name"]
        samples.append(as_sample(name, number, height, width, boxes, labels, masks=masks))
    return samples


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_known_flat(thing: dict[str, Any]) -> bool:
    """One of COCO's own two; another data set may use their ids for sound boxes."""
    return thing["id"] in _KNOWN_FLAT and 0 in thing["bbox"][2:]


def _mask(
    segmentation: list[Any] | dict[str, Any],
    height: int,
    width: int,
    where: str,
    problems: Problems,
) -> Mask:
    """Polygons as arrays; run-length codes decoded."""
    if isinstance(segmentation, dict):
        code = segmentation
        if "counts" not in code or code.get("size") != [height, width]:
            problems.add(f"{where}: a run-length mask without counts or of another size")
            return []
        if isinstance(code["counts"], list):
            code = rle_tools.frPyObjects(code, height, width)
        return rle_tools.decode(code)
    try:
        polygons = [np.asarray(p, np.float64) for p in segmentation]
    except (TypeError, ValueError):
        problems.add(f"{where}: a polygon is not a list of numbers")
        return []
    good = [p for p in polygons if p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0]
    if not good:
        problems.add(f"{where}: no polygon of three points or more")
    return good
