"""Detection data in VOC's layout: ``VOCdevkit/VOC{year}/{JPEGImages,Annotations,ImageSets}``."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from eval_detection.config import DetectConfig
from eval_detection.problems import wrong_boxes
from eval_detection.samples import DetectionData, Sample, as_sample, finish
from siambench.data.voc import class_names, split_ids, voc_folder
from siambench.errors import UserError
from siambench.problems import Problems

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def open_voc(config: DetectConfig) -> DetectionData:
    """Read the training and test sets named in ``config`` and check every annotation.

    Raises:
        UserError: a list, image or annotation is missing or wrong; all of it is in the details.
    """
    if config.mask:
        raise UserError("mask: VOC's boxes have no masks; use --format coco, or leave out --mask")
    train_sets = [_year_and_split(text, "train_sets") for text in config.train_sets]
    if not train_sets:
        raise UserError("train_sets is empty; name at least one, e.g. 2007/trainval")
    test_year, test_split = _year_and_split(config.test_set, "test_set")
    classes = class_names(voc_folder(config.data, train_sets[0][0]), train_sets[0][1])
    names = ("+".join(dict.fromkeys(split for _, split in train_sets)), test_split)
    if names[0] == test_split:
        names = ("+".join(config.train_sets), config.test_set)
    _keep_apart(config, train_sets, (test_year, test_split))
    problems = Problems(config.skip_bad)
    train = [s for one in train_sets for s in _read(config.data, *one, classes, problems)]
    test = _read(config.data, test_year, test_split, classes, problems)
    root = voc_folder(config.data, test_year).parent
    ids = list(range(1, len(classes) + 1))
    return finish(root, names, classes, ids, train, test, problems)


def _year_and_split(text: str, field: str) -> tuple[str, str]:
    year, slash, split = text.partition("/")
    if not (year and slash and split):
        raise UserError(f"{field}: {text!r} is not YEAR/SPLIT, e.g. 2007/trainval")
    return year, split


def _keep_apart(
    config: DetectConfig, train_sets: list[tuple[str, str]], test_set: tuple[str, str]
) -> None:
    """Raise UserError if an image of the test set is trained on, or an id twice.

    The same id in another year's test set is another image.
    """

    def images(year: str, split: str) -> set[tuple[str, str]]:
        return {(year, name) for name in _ids(voc_folder(config.data, year), split, Problems())}

    test = images(*test_set)
    seen: dict[str, str] = {}
    for text, one in zip(config.train_sets, train_sets, strict=True):
        if shared := images(*one) & test:
            raise UserError(
                f"train_sets: {len(shared)} images of {text} are also in the test set "
                f"{config.test_set}, e.g. {min(shared)[1]}; choose sets that share none"
            )
        if twice := sorted(name for _, name in images(*one) if name in seen):
            raise UserError(
                f"train_sets: {len(twice)} image ids are in {seen[twice[0]]} and in {text}, e.g. "
                f"{twice[0]}; choose sets that share none"
            )
        seen |= {name: text for _, name in images(*one)}


def _ids(folder: Path, split: str, problems: Problems) -> list[str]:
    """The image ids of a list; notes if it is absent or empty or has one twice."""
    try:
        ids = split_ids(folder, split)
    except UserError as error:
        problems.file(str(folder), str(error))
        return []
    for name, count in Counter(ids).items():
        if count > 1:
            where = folder / "ImageSets" / "Main" / f"{split}.txt"
            problems.file(str(where), f"image {name} is listed {count} times")
    return ids


def _read(
    devkit: str, year: str, split: str, classes: list[str], problems: Problems
) -> list[Sample]:
    folder = voc_folder(devkit, year)
    return [_read_one(folder, name, classes, problems) for name in _ids(folder, split, problems)]


def _read_one(folder: Path, name: str, classes: list[str], problems: Problems) -> Sample:
    """Parse one XML file; coordinates become 0-based with an exclusive end, as detectron2 has them.

    Wrong objects are left out; without a size in the XML the sample's is 0 × 0.
    """
    path = folder / "Annotations" / f"{name}.xml"
    image = folder / "JPEGImages" / f"{name}.jpg"
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        reason = f"is not XML ({error})"
        if isinstance(error, OSError):
            reason = f"cannot be read ({error.strerror})"
        problems.image(str(path), reason)
        return as_sample(image, name, 0, 0, [], [])
    height, width = _size(tree, path, problems)
    boxes, labels, difficult, places = [], [], [], []
    for number, thing in enumerate(tree.iterfind("object"), start=1):
        label = thing.findtext("name", "")
        where = f"{path}, object {number} ({label})"
        try:
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{c}", "")) for c in _CORNERS)
        except ValueError:
            problems.object(where, "has no whole bndbox")
            continue
        if label not in classes:
            problems.object(where, f"class {label!r} is not one of the data set's")
        flag = thing.findtext("difficult", "0").strip()
        if flag not in ("0", "1"):
            problems.object(where, f"difficult is {flag!r}, neither 0 nor 1")
        boxes.append([x0 - 1, y0 - 1, x1, y1])
        labels.append(classes.index(label) if label in classes else -1)
        difficult.append(flag == "1")
        places.append(where)
    sizes = np.tile([height, width], (len(boxes), 1))
    for row, what in wrong_boxes(np.array(boxes).reshape(-1, 4), sizes).items():
        problems.object(places[row], what)
    good = [row for row, where in enumerate(places) if where not in problems.objects]
    return as_sample(
        image,
        name,
        height,
        width,
        [boxes[row] for row in good],
        [labels[row] for row in good],
        [difficult[row] for row in good],
    )


def _size(tree: ElementTree.Element, path: Path, problems: Problems) -> tuple[int, int]:
    """Height and width; notes what is wrong with them and returns 0 and 0."""
    texts = [tree.findtext(f"size/{side}") for side in ("height", "width")]
    if None in texts:
        problems.image(str(path), "has no image size")
        return 0, 0
    try:
        height, width = (int(text or "") for text in texts)
    except ValueError:
        height = width = 0
    if min(height, width) > 0:
        return height, width
    shown = " × ".join(repr(text) for text in reversed(texts))
    problems.image(str(path), f"image size {shown} is not two whole numbers above 0")
    return 0, 0
