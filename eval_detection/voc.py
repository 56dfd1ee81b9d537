"""Detection data in VOC's layout: ``VOCdevkit/VOC{year}/{JPEGImages,Annotations,ImageSets}``."""

from pathlib import Path
from xml.etree import ElementTree

from eval_detection.config import DetectConfig
from eval_detection.samples import DetectionData, Problems, Sample, as_sample, check_box, finish
from siambench.data.voc import class_names, split_ids, voc_folder
from siambench.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def open_voc(config: DetectConfig) -> DetectionData:
    """Read the training and test sets named in ``config`` and check every annotation.

    Raises:
        UserError: a list, image or annotation is missing or wrong; all problems in one line.
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
    problems = Problems()
    train = [s for one in train_sets for s in _read(config.data, *one, classes, problems)]
    test = _read(config.data, test_year, test_split, classes, problems)
    problems.stop(f"VOC annotations in {config.data}")
    root = voc_folder(config.data, test_year).parent
    ids = list(range(1, len(classes) + 1))
    return finish(root, names, classes, ids, train, test, skip_bad=config.skip_bad)


def _year_and_split(text: str, field: str) -> tuple[str, str]:
    year, slash, split = text.partition("/")
    if not (year and slash and split):
        raise UserError(f"{field}: {text!r} is not YEAR/SPLIT, e.g. 2007/trainval")
    return year, split


def _keep_apart(
    config: DetectConfig, train_sets: list[tuple[str, str]], test_set: tuple[str, str]
) -> None:
    """Raise UserError if an image of the test set is trained on; the same id is one of its year."""

    def images(year: str, split: str) -> set[tuple[str, str]]:
        return {(year, name) for name in split_ids(voc_folder(config.data, year), split)}

    test = images(*test_set)
    for text, one in zip(config.train_sets, train_sets, strict=True):
        if shared := images(*one) & test:
            raise UserError(
                f"train_sets: {len(shared)} images of {text} are also in the test set "
                f"{config.test_set}, e.g. {min(shared)[1]}; choose sets that share none"
            )


def _read(
    devkit: str, year: str, split: str, classes: list[str], problems: Problems
) -> list[Sample]:
    folder = voc_folder(devkit, year)
    samples = []
    for name in split_ids(folder, split):
        found = len(problems.found)
        sample = _read_one(folder, name, classes, problems)
        if sample is not None and len(problems.found) == found:
            samples.append(sample)
    return samples


def _read_one(folder: Path, name: str, classes: list[str], problems: Problems) -> Sample | None:
    """Parse one XML file; coordinates become 0-based with an exclusive end, as detectron2 has them."""
    path = folder / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError:
        problems.add(f"{path} does not exist")
        return None
    except ElementTree.ParseError as error:
        problems.add(f"{path} is not XML ({error})")
        return None
    try:
        height, width = (int(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
    except ValueError:
        problems.add(f"{path} has no image size")
        return None
    boxes, labels, difficult = [], [], []
    for thing in tree.iterfind("object"):
        label = thing.findtext("name", "")
        if label not in classes:
            problems.add(f"{path}: class {label!r} is not one of the data set's")
            continue
        try:
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{c}", "")) for c in _CORNERS)
        except ValueError:
            problems.add(f"{path}: a {label} has no whole bndbox")
            continue
        box = [x0 - 1, y0 - 1, x1, y1]
        if check_box(box, height, width, f"{path}, {label}", problems):
            boxes.append(box)
            labels.append(classes.index(label))
            difficult.append(thing.findtext("difficult", "0").strip() == "1")
    image = folder / "JPEGImages" / f"{name}.jpg"
    return as_sample(image, name, height, width, boxes, labels, difficult)
