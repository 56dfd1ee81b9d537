"""Data sets whose splits are iNaturalist's JSON lists (COCO's format, one category per image)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siambench.data.images import ImageList
from siambench.data.text_lists import Lists, check_inside
from siambench.errors import UserError, first_line
from siambench.files import existing


def find_json_lists(root: Path) -> Lists | None:
    """iNaturalist's ``train2018.json`` and ``val2018.json``, or of another year; None without them.

    The format is COCO's: ``images`` with ``id`` and ``file_name`` (relative to ``root``),
    ``annotations`` with ``image_id`` and ``category_id``, ``categories`` with ``id`` and ``name``.
    Labels count the categories in the order of their ids. The names of 2018 are obfuscated; those of
    the ``categories.json`` that was released later are taken where it lies beside
    (github.com/visipedia/inat_comp, 2018/README.md).

    Raises:
        UserError: there are lists of several years, one is damaged, or the two differ in their
            categories; as :func:`read_json_list`.
    """
    years = sorted(
        found[1]
        for path in root.iterdir()
        if (found := re.fullmatch(r"train(20\d\d)\.json", path.name))
    )
    if not years:
        return None
    if lacking := [year for year in years if not (root / f"val{year}.json").is_file()]:
        raise UserError(
            f"{root} has train{lacking[0]}.json but no val{lacking[0]}.json; unpack it there"
        )
    if len(years) > 1:
        raise UserError(f"{root} has lists of {' and '.join(years)}; leave one year's there")
    paths = {split: root / f"{split}{years[0]}.json" for split in ("train", "val")}
    lists, ids = {}, {}
    for split, path in paths.items():
        content = _load(path)
        lists[split], ids[split] = read_json_list(content, path, root)
    if ids["train"] != ids["val"]:
        odd = sorted(set(ids["train"]) ^ set(ids["val"]))[0]
        raise UserError(
            f"{paths['train']} and {paths['val']} differ in their categories, first in id {odd}; they "
            "must have the same"
        )
    if (root / "categories.json").is_file():
        names = _categories(_load(root / "categories.json"), root / "categories.json")
        if missing := [i for i in ids["train"] if i not in names]:
            raise UserError(f"{root}/categories.json has no category with id {missing[0]}")
        classes = _unique([names[i] for i in ids["train"]], ids["train"])
        lists = {s: ImageList(i.root, i.paths, i.labels, classes) for s, i in lists.items()}
    return lists


def read_json_list(content: Any, path: Path, root: Path) -> tuple[ImageList, list[int]]:
    """Images, labels and classes of one list, in the order of ``images``; and the category ids.

    Args:
        content: the file's JSON.
        path: the file, for messages.
        root: what file names are relative to.

    Raises:
        UserError: fields are missing, an image has no category, two, or one that is not listed, a
            file name is listed twice or leaves the folder.
    """
    try:
        names = _categories(content["categories"], path)
        ids = sorted(names)
        label_of = {i: label for label, i in enumerate(ids)}
        labels: dict[object, int] = {}
        for row in content["annotations"]:
            image, category = row["image_id"], row["category_id"]
            if category not in label_of:
                raise UserError(
                    f"{path}: annotation of image {image!r} has category_id {category!r}, which is not "
                    "among the categories"
                )
            if labels.setdefault(image, label_of[category]) != label_of[category]:
                raise UserError(f"{path}: image {image!r} is annotated with two categories")
        paths: dict[str, int] = {}
        for row in content["images"]:
            name, image = row["file_name"], row["id"]
            check_inside(name, f"{path}, image {image!r}")
            if image not in labels:
                raise UserError(f"{path}: image {image!r} ({name}) has no annotation")
            if name in paths:
                raise UserError(f"{path}: {name} is listed twice")
            paths[name] = labels[image]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a list of images, annotations and categories as iNaturalist's "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    if not paths:
        raise UserError(f"{path} lists no image")
    classes = _unique([names[i] for i in ids], ids)
    return ImageList(root, list(paths), list(paths.values()), classes), ids


def _load(path: Path) -> Any:
    try:
        return json.loads(existing(path, "list").read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}); unpack it again") from None


def _categories(rows: Any, path: Path) -> dict[int, str]:
    """Names by id."""
    names = {}
    for row in rows:
        number = row["id"]
        if not isinstance(number, int) or number in names:
            raise UserError(f"{path}: category id {number!r} is not an integer, or there twice")
        names[number] = str(row["name"])
    return names


def _unique(names: Sequence[str], ids: Sequence[int]) -> list[str]:
    """The names, with their ids where two are the same."""
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name} ({number})" for name, number in zip(names, ids, strict=True)]
