"""Writing scenes in the layouts of ImageNet, VOCdevkit, COCO and Cityscapes."""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import contourpy
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from siambench.data.digits import NAMES, Instance, Scene

CLASSES = tuple(sorted(NAMES))  # VOC numbers its classes alphabetically, from 1; 0 is background
# COCO's category ids have gaps, and code that takes them for indices must fail here too.
COCO_IDS = {digit: digit + 1 + (digit >= 5) for digit in range(10)}
# Cityscapes labelIds with a train id (cityscapesScripts, helpers/labels.py): ground is road, the
# digits zero to nine are the next ten.
CITYSCAPES_GROUND = 7
CITYSCAPES_IDS = (8, 11, 12, 13, 17, 19, 20, 21, 22, 23)
BORDER = 255


def save_jpeg(path: Path, scene: Scene) -> None:
    """JPEG at quality 90, chroma not subsampled: at these sizes subsampling smears the ink."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.pixels).save(path, "JPEG", quality=90, subsampling=0)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_imagenet(root: Path, split: str, scenes: Iterable[tuple[int, Scene]]) -> None:
    """``root/SPLIT/CLASS/CLASS_00000.jpg``; one digit a picture."""
    for number, (digit, scene) in enumerate(scenes):
        name = NAMES[digit]
        save_jpeg(root / split / name / f"{name}_{number:06d}.jpg", scene)


# -- VOC ------------------------------------------------------------------------------------------


def write_voc(
    root: Path, year: str, splits: Mapping[str, Iterable[Scene]], *, segmented: int = 1
) -> None:
    """``root/VOC{year}``: JPEGs, XML, split lists with difficult flags, segmentation masks.

    Args:
        root: the VOCdevkit folder.
        year: ``"2007"`` or ``"2012"``.
        splits: ``train``, ``val`` and perhaps ``test``; ``trainval`` is made from the first two.
        segmented: one image in this many is in ImageSets/Segmentation; every training image is in
            ``train_aug``, with a mask in SegmentationClassAug that has no border (as SBD's).
    """
    folder = root / f"VOC{year}"
    ids: dict[str, list[str]] = {}
    present: dict[str, dict[str, int]] = {}  # id -> class -> 1, or 0 where all are difficult
    number = 0
    for split, scenes in splits.items():
        ids[split] = []
        for position, scene in enumerate(scenes):
            number += 1
            name = f"{number:06d}" if year == "2007" else f"{year}_{number:06d}"
            ids[split].append(name)
            save_jpeg(folder / "JPEGImages" / f"{name}.jpg", scene)
            _write(folder / "Annotations" / f"{name}.xml", _voc_xml(year, name, scene))
            present[name] = _voc_labels(scene)
            _write_voc_masks(folder, name, scene, bordered=position % segmented == 0)
        _write_lines(folder / "ImageSets/Segmentation" / f"{split}.txt", ids[split][::segmented])
    _write_lines(folder / "ImageSets/Segmentation/train_aug.txt", ids["train"])
    ids["trainval"] = sorted(ids["train"] + ids["val"])
    for split, names in ids.items():
        _write_lines(folder / "ImageSets/Main" / f"{split}.txt", names)
        for label in CLASSES:
            rows = [f"{n} {present[n].get(label, -1):2d}" for n in names]
            _write_lines(folder / "ImageSets/Main" / f"{label}_{split}.txt", rows)


def _write_lines(path: Path, lines: list[str]) -> None:
    _write(path, "".join(line + "\n" for line in lines))


def is_difficult(instance: Instance) -> bool:
    """Faint, or less than six tenths of it in sight."""
    return instance.faint or instance.visible < 0.6


def _voc_labels(scene: Scene) -> dict[str, int]:
    labels: dict[str, int] = {}
    for instance in scene.instances:
        name = NAMES[instance.digit]
        labels[name] = max(labels.get(name, 0), int(not is_difficult(instance)))
    return labels


def _voc_xml(year: str, name: str, scene: Scene) -> str:
    height, width = scene.pixels.shape[:2]
    top = ET.Element("annotation")
    _children(top, folder=f"VOC{year}", filename=f"{name}.jpg")
    _children(ET.SubElement(top, "source"), database="siambench digit scenes")
    _children(ET.SubElement(top, "size"), width=width, height=height, depth=3)
    _children(top, segmented=1)
    for instance in scene.instances:
        x0, y0, x1, y1 = instance.box
        thing = ET.SubElement(top, "object")
        _children(
            thing,
            name=NAMES[instance.digit],
            pose="Unspecified",
            truncated=int(instance.visible < 0.95),
            difficult=int(is_difficult(instance)),
        )
        # VOC counts pixels from 1 and includes the last one.
        _children(ET.SubElement(thing, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    ET.indent(top, "\t")
    return ET.tostring(top, encoding="unicode") + "\n"


def _children(parent: ET.Element, **values: Any) -> None:
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = str(value)


def _write_voc_masks(folder: Path, name: str, scene: Scene, *, bordered: bool) -> None:
    labels = np.zeros(scene.pixels.shape[:2], np.uint8)
    things = np.zeros_like(labels)
    border = np.zeros(labels.shape, bool)
    for number, instance in enumerate(scene.instances, 1):
        labels[instance.mask] = CLASSES.index(NAMES[instance.digit]) + 1
        things[instance.mask] = number
        border |= _rim(instance.mask)
    _save_mask(folder / "SegmentationClassAug" / f"{name}.png", labels, palette=False)
    if bordered:
        for kind, mask in (("SegmentationClass", labels), ("SegmentationObject", things)):
            _save_mask(folder / kind / f"{name}.png", np.where(border, BORDER, mask), palette=True)


def _rim(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The pixels just outside ``mask``: VOC's void border, one pixel wide at these sizes."""
    padded = np.pad(mask, 1)
    grown = np.zeros_like(mask)
    height, width = mask.shape
    for dy in range(3):
        for dx in range(3):
            grown |= padded[dy : dy + height, dx : dx + width]
    return grown & ~mask


@lru_cache(maxsize=1)
def voc_palette() -> list[int]:
    """VOC's colours: bit b of the index, three at a time, goes to bit 7 − b//3 of R, G and B."""
    colours = []
    for index in range(256):
        for channel in range(3):
            bits = (((index >> (3 * i + channel)) & 1) << (7 - i) for i in range(8))
            colours.append(sum(bits))
    return colours


def _save_mask(path: Path, mask: np.ndarray[Any, Any], *, palette: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    if palette:
        image.putpalette(voc_palette())
    image.save(path, "PNG")


# -- COCO -----------------------------------------------------------------------------------------


def write_coco(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """``root/SPLIT2017/*.jpg`` and ``root/annotations/instances_SPLIT2017.json``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    first = 1 if split == "train" else 500_001
    for number, scene in enumerate(scenes, first):
        height, width = scene.pixels.shape[:2]
        name = f"{number:012d}.jpg"
        save_jpeg(root / f"{split}2017" / name, scene)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for instance in scene.instances:
            polygons = _polygons(instance.mask)
            if polygons:
                area = _polygon_area(polygons, height, width)
                box = _coco_box(instance.mask)
                annotations.append(_thing(number, instance.digit, box, area, polygons, crowd=0))
        if scene.crowd is not None:
            digit, mask = scene.crowd
            segmentation = {"size": [height, width], "counts": _run_lengths(mask)}
            area = float(mask.sum())
            annotations.append(_thing(number, digit, _coco_box(mask), area, segmentation, crowd=1))
    for index, annotation in enumerate(annotations, first * 100):
        annotation["id"] = index
    categories = [
        {"id": COCO_IDS[d], "name": name, "supercategory": "digit"} for d, name in enumerate(NAMES)
    ]
    content = {
        "info": {"description": "siambench digit scenes", "year": 2017},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    _write(root / "annotations" / f"instances_{split}2017.json", json.dumps(content) + "\n")


def _thing(
    image: int, digit: int, box: list[float], area: float, segmentation: Any, *, crowd: int
) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": COCO_IDS[digit],
        "bbox": box,
        "area": area,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


def _coco_box(mask: np.ndarray[Any, Any]) -> list[float]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0])]


def _polygons(mask: np.ndarray[Any, Any]) -> list[list[float]]:
    """Outlines of ``mask`` in COCO's coordinates (a pixel's centre is at .5); holes are filled."""
    padded = np.pad(mask.astype(float), 1)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    polygons = []
    for line in lines:
        points = np.asarray(line)[:-1] - 1 + 0.5  # the last point repeats the first
        x, y = points.T
        signed = 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
        if len(points) >= 3 and signed > 1:  # contourpy turns holes the other way
            polygons.append([round(float(v), 2) for v in points.flatten()])
    return polygons


def _polygon_area(polygons: list[list[float]], height: int, width: int) -> float:
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))))


def _run_lengths(mask: np.ndarray[Any, Any]) -> list[int]:
    """COCO's uncompressed RLE: lengths of runs of 0 and 1 in turn, column by column, 0 first."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *runs] if flat[0] else runs


# -- Cityscapes -----------------------------------------------------------------------------------


def write_cityscapes(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """``root/leftImg8bit/SPLIT/digitstadt/*`` and ``root/gtFine/SPLIT/digitstadt/*_labelIds.png``."""
    for number, scene in enumerate(scenes):
        labels = np.full(scene.pixels.shape[:2], CITYSCAPES_GROUND, np.uint8)
        for instance in scene.instances:
            labels[instance.mask] = CITYSCAPES_IDS[instance.digit]
            labels[_rim(instance.mask)] = 0  # unlabeled, ignored
        stem = f"digitstadt_{number:06d}_000019"
        picture = root / "leftImg8bit" / split / "digitstadt" / f"{stem}_leftImg8bit.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.pixels).save(picture, "PNG")
        mask = root / "gtFine" / split / "digitstadt" / f"{stem}_gtFine_labelIds.png"
        _save_mask(mask, labels, palette=False)
