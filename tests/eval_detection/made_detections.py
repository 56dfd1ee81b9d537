"""Annotations and detections that meet every rule of COCO's evaluation, from a seed."""

from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

CATEGORIES = [3, 7, 8, 20, 21]  # nothing is annotated as the last one
_IMAGES = 12


def made_coco(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An annotation file's content and detections with masks: crowds, ties, empty images, masks of all
    three kinds, areas that are not the boxes', and one image and class with more than 100 detections.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[:_IMAGES].tolist()
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": h, "width": w}
        for i, (h, w) in zip(ids, rng.integers(190, 260, (_IMAGES, 2)).tolist(), strict=True)
    ]
    annotations, results = [], []
    for place, image in enumerate(images):
        for _ in range(0 if place == 0 else int(rng.integers(1, 9))):
            category = int(rng.choice(CATEGORIES[:2] if place == 1 else CATEGORIES[:-1]))
            box = _box(rng, image)
            crowd = bool(rng.random() < 0.15)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "iscrowd": int(crowd),
                    "area": float(
                        rng.choice([32**2, 96**2, box[2] * box[3] * rng.uniform(0.4, 1)])
                    ),
                    "segmentation": _segmentation(rng, box, image, crowd),
                }
            )
            for _ in range(30 if place == 1 else int(rng.integers(0, 7))):
                moved = np.array(box) + rng.integers(-6, 7, 4) * (rng.random() < 0.8)
                moved[2:] = moved[2:].clip(1)
                wrong = rng.random() < 0.1
                label = int(rng.choice(CATEGORIES)) if wrong else category
                results.append(_detection(rng, moved.tolist(), image, label))
        results += [
            _detection(rng, _box(rng, image), image, int(rng.choice(CATEGORIES[:2])))
            for _ in range(130 if place == 1 else 3)
        ]
    results = [results[i] for i in rng.permutation(len(results))]
    categories = [{"id": c, "name": f"class{c}"} for c in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _box(rng: np.random.Generator, image: dict[str, Any]) -> list[int]:
    """x, y, width, height in whole px, so that IoUs tie."""
    side = rng.choice([rng.integers(8, 30), rng.integers(30, 90), rng.integers(90, 150)])
    width, height = (int(v) for v in side * rng.uniform(0.8, 1.2, 2))
    x = rng.integers(0, image["width"] - width)
    return [int(x), int(rng.integers(0, image["height"] - height)), width, height]


def _detection(rng: np.random.Generator, box: list[int], image: dict[str, Any], category: int):
    code = rle_tools.merge(rle_tools.frPyObjects([_ellipse(box)], image["height"], image["width"]))
    return {
        "image_id": image["id"],
        "category_id": category,
        "bbox": [float(v) for v in box],
        "score": round(float(rng.random()), 2),  # ties
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


def _ellipse(box: list[int]) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y, width, height = box
    points = np.stack((x + width * (1 + np.cos(angle)) / 2, y + height * (1 + np.sin(angle)) / 2))
    return points.T.ravel().tolist()


def _segmentation(rng: np.random.Generator, box: list[int], image: dict[str, Any], crowd: bool):
    x, y, width, height = box
    half = [[x, y, width // 2, height], [x + width // 2, y, width - width // 2, height]]
    polygons = [_ellipse(box)] if rng.random() < 0.7 else [_ellipse(b) for b in half]
    kind = rng.random()
    if not crowd and kind < 0.5:
        return polygons
    size = image["height"], image["width"]
    code = rle_tools.merge(rle_tools.frPyObjects(polygons, *size))
    if kind < 0.75:
        return {"size": list(size), "counts": code["counts"].decode()}
    flat = rle_tools.decode(code).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=0 if flat[-1] else 1))
    runs = np.diff(ends, prepend=0)
    return {"size": list(size), "counts": [*runs.tolist(), flat.size - int(runs.sum())]}
