"""COCO evaluation of detections: seconds and numbers of pycocotools, faster-coco-eval and ours.

Usage: OMP_NUM_THREADS=1 python benchmarks/detect_ap.py [--rounds 3] [--images 5000] [--data JSON]. By
default val2017's counts: 5,000 images, 36,781 objects in 80 classes (a hundredth of them crowds), 100
detections an image; with --data the objects of an annotation file, e.g. instances_val2017.json. A third
of the detections are near an object, some with another class; the rest are boxes anywhere, half of them in
classes that the image has. Masks are ellipses. Timed, in turn: from the annotations in memory and the
list of results to the precision array; of pycocotools that is loadRes, evaluate and accumulate, of ours
all sizes and classes, boxes alone, then masks with boxes less boxes alone. faster-coco-eval where it is
installed.

Expected, before the first measurement on two Zen 4 cores: boxes 10 times as fast as pycocotools (what is
left is reading lists into arrays), masks 4 times (both unpack every mask, in the same C);
faster-coco-eval between the two.
"""

import argparse
import contextlib
import copy
import io
import json
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder

HEIGHT, WIDTH, DETECTIONS = 480, 640, 100
KINDS = {"box": "bbox", "mask": "segm"}


def made_truth(images: int, rng: np.random.Generator) -> dict[str, Any]:
    """An annotation file with val2017's density: a few classes an image, many objects of one."""
    weights = np.arange(1, 81) ** -1.0
    share = rng.exponential(size=images)
    counts = rng.multinomial(36_781 * images // 5_000, share / share.sum())
    annotations: list[dict[str, Any]] = []
    for image, count in enumerate(counts.tolist()):
        there = rng.choice(80, 4, p=weights / weights.sum())
        for box in boxes_in(count, rng):
            crowd = bool(rng.random() < 0.01)
            polygon = ellipse(box)
            mask: Any = [polygon]
            if crowd:
                mask = as_code(polygon, HEIGHT, WIDTH)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(there)) + 1,
                    "bbox": box,
                    "area": box[2] * box[3] * 0.7,
                    "iscrowd": int(crowd),
                    "segmentation": mask,
                }
            )
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(1, 81)],
    }


def boxes_in(count: int, rng: np.random.Generator) -> list[list[float]]:
    """x, y, width, height; sides of 10 to 300 px, more small ones."""
    side = np.exp(rng.uniform(np.log(10), np.log(300), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - side)
    return np.concatenate((corner, side), axis=1).round(2).tolist()


def ellipse(box: list[float]) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y, width, height = box
    points = np.stack((x + width * (1 + np.cos(angle)) / 2, y + height * (1 + np.sin(angle)) / 2))
    return points.T.ravel().tolist()


def as_code(polygon: list[float], height: int, width: int) -> dict[str, Any]:
    code = rle_tools.frPyObjects([polygon], height, width)[0]
    return {"size": code["size"], "counts": code["counts"].decode()}


def made_results(content: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Up to 100 detections an image, as an engine returns them."""
    objects: dict[int, list[dict[str, Any]]] = {}
    for thing in content["annotations"]:
        objects.setdefault(thing["image_id"], []).append(thing)
    classes = [c["id"] for c in content["categories"]]
    results = []
    for image in content["images"]:
        mine = objects.get(image["id"], [])
        found = []
        for index in rng.integers(0, len(mine), 35 if mine else 0).tolist():
            thing = mine[index]
            box = np.array(thing["bbox"])
            moved = box + rng.normal(0, 0.08, 4) * np.tile(box[2:], 2)
            category = thing["category_id"] if rng.random() < 0.8 else int(rng.choice(classes))
            found.append((moved.round(2).tolist(), category, 0.3 + 0.7 * rng.random()))
        there = [thing["category_id"] for thing in mine] or classes
        for box in boxes_in(DETECTIONS - len(found), rng):
            category = int(rng.choice(there if rng.random() < 0.5 else classes))
            found.append((box, category, 0.6 * rng.random()))
        for box, category, score in found:
            box[2:] = [max(side, 1.0) for side in box[2:]]
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "score": round(score, 5),
                    "segmentation": as_code(ellipse(box), image["height"], image["width"]),
                }
            )
    return results


def by_peer(library: str, content: dict, results: list[dict], kind: str):
    """Seconds and precision of pycocotools or of a library with its interface."""
    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    unused = "bbox" if kind == "mask" else "segmentation"
    rows = [{k: v for k, v in r.items() if k != unused} for r in results]  # they write into them
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    truth.createIndex()
    start = time.perf_counter()
    judged = COCOeval(truth, truth.loadRes(rows), KINDS[kind])
    judged.evaluate()
    judged.accumulate()
    return time.perf_counter() - start, judged.eval["precision"][..., -1]


def by_ours(content: dict, results: list[dict], masks: bool):
    """Seconds and precision of both kinds."""
    from eval_detection.coco_ap import coco_precision

    images = [image["id"] for image in content["images"]]
    categories = sorted(c["id"] for c in content["categories"])
    start = time.perf_counter()
    found = coco_precision(content, results, images, categories, masks=masks)
    return time.perf_counter() - start, found


def main(rounds: int, images: int, data: str) -> None:
    """All in turn, ``rounds`` times; print a Markdown table."""
    rng = np.random.default_rng(0)
    content = json.loads(Path(data).read_text()) if data else made_truth(images, rng)
    results = made_results(content, rng)
    peers = ["pycocotools"] + ["faster-coco-eval"] * bool(find_spec("faster_coco_eval"))
    seconds: dict[tuple[str, str], list[float]] = {}
    precision: dict[tuple[str, str], np.ndarray] = {}

    def note(who: str, kind: str, spent: float, found: np.ndarray) -> None:
        seconds.setdefault((who, kind), []).append(spent)
        precision[who, kind] = found

    for _ in range(rounds):
        boxes_alone, found = by_ours(content, results, masks=False)
        note("ours", "box", boxes_alone, found["box"])
        both, found = by_ours(content, results, masks=True)
        note("ours", "mask", both - boxes_alone, found["mask"])
        for kind in KINDS:
            for peer in peers:
                with contextlib.redirect_stdout(io.StringIO()):
                    note(peer, kind, *by_peer(peer, content, results, kind))
    counts = [len(content[part]) for part in ("images", "annotations", "categories")]
    print("{:,} images, {:,} objects, {} classes; ".format(*counts), end="")
    print(f"{len(results):,} detections; median of {rounds} rounds\n")
    print("| evaluation | of | seconds | pycocotools / it | AP | largest difference |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        whole = statistics.median(seconds["pycocotools", kind])
        truth = precision["pycocotools", kind]
        for who in [*peers, "ours"]:
            mine, spent = precision[who, kind], seconds[who, kind]
            middle, ap = statistics.median(spent), mine[..., 0][mine[..., 0] > -1].mean()
            print(
                f"| {who} | {kind} | {middle:.2f} ({min(spent):.2f} to {max(spent):.2f}) "
                f"| {whole / middle:.1f} | {100 * ap:.3f} | {np.abs(mine - truth).max():.1e} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--data", default="", help="COCO annotations")
    main(**vars(parser.parse_args()))
