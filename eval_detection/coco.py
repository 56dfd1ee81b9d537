"""Detection data in COCO's layout: ``{split}/*.jpg`` and ``annotations/instances_{split}.json``."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval_detection.coco_json import Kinds, as_mask, four_numbers, lacks, load, named
from eval_detection.config import DetectConfig
from eval_detection.masks import Code, Masks, Polygons
from eval_detection.problems import wrong_boxes
from eval_detection.samples import DetectionData, Sample, as_sample, finish
from siambench.errors import UserError
from siambench.files import existing, sha256_file
from siambench.problems import Problems

# train2017 itself holds two boxes of height 0 (github.com/cocodataset/cocoapi/issues/355).
_KNOWN_FLAT = {918, 2206849}
_CATEGORY = {"id": int, "name": (str, int)}
_IMAGE = {"id": int, "file_name": str}
_SIZE = {"height": int, "width": int}
_MOST = 1 << 16  # px a side; a JPEG has no more
_THING = {"id": int, "image_id": int, "category_id": int, "bbox": list}
_TESTED = {"area": (int, float), "iscrowd": int}  # read at the test


def open_coco(config: DetectConfig) -> DetectionData:
    """Read the training and test sets named in ``config`` and check every annotation.

    Crowd regions are left out of training; the evaluation ignores them.

    Raises:
        UserError: a file is missing or an annotation wrong; all of it is in the details.
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
    hint = "point --data at the folder that holds train2017, val2017 and annotations"
    paths = [
        existing(root / "annotations" / f"instances_{name}.json", "COCO annotations", hint=hint)
        for name in (split, config.test_set)
    ]
    with _collector_paused():
        return _open(root, config, paths)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Python looks for circles among all objects again and again, and here are millions, and none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _open(root: Path, config: DetectConfig, paths: list[Path]) -> DetectionData:
    split, problems = config.train_sets[0], Problems(config.skip_bad)
    kinds: Kinds = {**_THING, "segmentation": (list, dict)} if config.mask else _THING
    train = _read(root / split, paths[0], kinds, problems)
    test = _read(root / config.test_set, paths[1], kinds | _TESTED, problems)
    if train.categories and test.categories and train.categories != test.categories:
        problems.file(f"{paths[0]} and {paths[1]}", "do not have the same categories")
    names = (_short(split), _short(config.test_set))
    return finish(
        root,
        names if names[0] != names[1] else (split, config.test_set),
        list(train.categories.values()),
        list(train.categories),
        train.samples,
        test.samples,
        problems,
        jsons=(paths[0], paths[1]),
        left_out=(train.left_out, test.left_out),
        extra=[sha256_file(path) for path in paths],
    )


def _short(split: str) -> str:
    """``train2017`` as ``train``: the year is the data set's."""
    return split.rstrip("0123456789") or split


@dataclass(frozen=True)
class _Split:
    """One file's content.

    Attributes:
        categories: id to name, by rising id: the label order of detectron2.
        samples: by rising image id; 0 × 0 where the image's entry is wrong.
        left_out: places in the file's list of the annotations that are wrong.
    """

    categories: dict[int, str]
    samples: list[Sample]
    left_out: frozenset[int]


def _read(folder: Path, path: Path, kinds: Kinds, problems: Problems) -> _Split:
    """Read one split; ``kinds`` are the fields that its annotations need."""
    lists = load(path, "segmentation" in kinds, problems)
    categories = _categories(lists["categories"], path, problems)
    images = _images(lists["images"], path, problems)
    things = lists["annotations"]
    rows = {number: row for row, number in enumerate(images)}
    labels = {category: label for label, category in enumerate(categories)}
    places: list[int] = []  # of what is kept, with its image, class and box
    columns: list[tuple[int, int]] = []
    boxes: list[list[float]] = []
    ids: set[int] = set()
    left_out: set[int] = set()

    def note(place: int, what: str) -> None:
        left_out.add(place)
        problems.object(f"{path}, annotation {named(things[place], place)}", what)

    for place, thing in enumerate(things):
        if what := lacks(thing, kinds):
            note(place, what)
            continue
        if thing["id"] in ids:
            problems.file(str(path), f"annotation id {thing['id']} is used twice")
        ids.add(thing["id"])
        row, label = rows.get(thing["image_id"], -1), labels.get(thing["category_id"], -1)
        if row < 0 and images:
            note(place, f"image {thing['image_id']} is not in the file")
        if label < 0 and categories:
            note(place, f"category {thing['category_id']} is not in the file")
        if not four_numbers(thing["bbox"]):
            note(place, f"bbox {str(thing['bbox'])[:40]} is not four numbers")
        elif row >= 0 and not thing.get("iscrowd") and not _is_known_flat(thing):
            places.append(place)
            columns.append((row, label))
            boxes.append(thing["bbox"])
        elif row >= 0 and "segmentation" in kinds:  # a crowd's mask is read at the test
            _, what = as_mask(thing["segmentation"], *images[thing["image_id"]][1:])
            if what and not _is_known_flat(thing):
                note(place, what)
    table = np.array(columns, np.int64).reshape(-1, 2)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    sizes = np.array([image[1:] for image in images.values()], np.int64).reshape(-1, 2)[table[:, 0]]
    for index, what in wrong_boxes(corners, sizes).items():
        note(places[index], what)
    masks: list[Polygons | Code] = []
    if "segmentation" in kinds:
        for place, (height, width) in zip(places, sizes.tolist(), strict=True):
            mask, what = as_mask(things[place]["segmentation"], height, width)
            masks.append(mask)
            if what:
                note(place, what)
    good = np.array([place not in left_out for place in places], bool)
    order = np.flatnonzero(good)[np.argsort(table[good, 0], kind="stable")]
    bounds = np.searchsorted(table[order, 0], np.arange(len(images) + 1)).tolist()
    samples = []
    for row, (number, (name, height, width)) in enumerate(images.items()):
        if not name:  # refused by now
            continue
        mine = order[bounds[row] : bounds[row + 1]]
        kept = [masks[index] for index in mine.tolist()] if masks else []
        samples.append(
            as_sample(
                folder / name,
                number,
                height,
                width,
                corners[mine],
                table[mine, 1],
                masks=Masks(kept),
            )
        )
    return _Split(categories, samples, frozenset(left_out))


def _categories(entries: list[Any], path: Path, problems: Problems) -> dict[int, str]:
    """Category id to name, by rising id."""
    found: dict[int, str] = {}
    for place, entry in enumerate(entries):
        if what := lacks(entry, _CATEGORY):
            problems.file(f"{path}, category {named(entry, place)}", what)
        elif entry["id"] in found:
            problems.file(str(path), f"category id {entry['id']} is used twice")
        elif str(entry["name"]) in found.values():
            problems.file(str(path), f"category name {entry['name']!r} is used twice")
        else:
            found[entry["id"]] = str(entry["name"])
    return dict(sorted(found.items()))


def _images(entries: list[Any], path: Path, problems: Problems) -> dict[int, tuple[str, int, int]]:
    """Image id to file name, height and width, by rising id; sizes are 0 where they make no sense."""
    found: dict[int, tuple[str, int, int]] = {}
    for place, entry in enumerate(entries):
        where = f"{path}, image {named(entry, place)}"
        what = lacks(entry, _IMAGE)
        if not what and not _is_inside(entry["file_name"]):
            what = f"file_name {entry['file_name']!r} is not inside the image folder"
        if what:
            problems.file(where, what)
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, int):
            continue
        if number in found:
            problems.file(str(path), f"image id {number} is used twice")
        found[number] = ("", 0, 0)
        if what:
            continue
        if what := lacks(entry, _SIZE):
            problems.image(where, what)
        elif not (0 < entry["height"] < _MOST and 0 < entry["width"] < _MOST):
            what = f"height {entry['height']} and width {entry['width']} make no image"
            problems.image(where, what)
        found[number] = (
            entry["file_name"],
            *((0, 0) if what else (entry["height"], entry["width"])),
        )
    return dict(sorted(found.items()))


def _is_inside(name: str) -> bool:
    return bool(name) and not (name.startswith("/") or "\0" in name or ".." in name.split("/"))


def _is_known_flat(thing: dict[str, Any]) -> bool:
    """One of COCO's own two; another data set may use their ids for sound boxes."""
    return thing["id"] in _KNOWN_FLAT and 0 in thing["bbox"][2:]
