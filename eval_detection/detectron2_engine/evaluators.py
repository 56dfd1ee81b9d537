"""Inference with detectron2's loop: its detections as our results, and its own evaluators' numbers."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from torch import nn

from eval_detection.config import DetectConfig
from eval_detection.detectron2_engine.data import packed, test_loader
from eval_detection.results import Result
from eval_detection.samples import DetectionData
from siambench.data.voc import split_ids, voc_folder
from siambench.errors import first_line
from siambench.evaluation import Job
from siambench.files import write_text
from siambench.progress import Bar, bar, say

_KINDS = {"bbox": "box", "segm": "mask"}
_SCORES = ("AP", "AP50", "AP75")
_YEARS = ("2007", "2012")  # that its VOC evaluator has a rule for


def find(
    model: nn.Module, data: DetectionData, config: DetectConfig, cfg: CfgNode, job: Job
) -> list[Result]:
    """Detections in every test image, in px of the originals; all of them in the first process.

    What detectron2's evaluators say of them, in %, goes to ``job.folder/detectron2.json``.
    """
    loader = test_loader(packed(data.test), cfg, job.workers)
    with (
        bar(f"{job.title}: test images", len(data.test)) as progress,
        _official(data, config, f"siambench/{job.folder.resolve()}") as official,
    ):
        rows = _Rows(data.category_ids, progress, job.world.size)
        found = inference_on_dataset(model, loader, [rows, *official])
    if job.world.rank:
        return []
    write_text(job.folder / "detectron2.json", json.dumps(_scores(found)))
    results: list[Result] = found["rows"]
    return results


def _scores(found: dict[str, Any]) -> dict[str, float]:
    """Both kinds' AP, AP50 and AP75; what it could not compute is left out."""
    return {
        f"{kind}_{name}": float(found[task][name])
        for task, kind in _KINDS.items()
        for name in _SCORES
        if task in found and math.isfinite(found[task][name])
    }


class _Rows(DatasetEvaluator):
    """Gathers our result rows, which are COCO's."""

    def __init__(self, category_ids: Sequence[int], progress: Bar, processes: int) -> None:
        self.category_ids, self.progress, self.processes = category_ids, progress, processes

    def reset(self) -> None:
        self.rows: list[Result] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            for row in instances_to_coco_json(instances, image["image_id"]):
                row["category_id"] = self.category_ids[row["category_id"]]
                self.rows.append(row)
        left = self.progress.total - self.progress.done
        self.progress.advance(min(len(inputs) * self.processes, left))

    def evaluate(self) -> dict[str, list[Result]]:
        # Each process had one run of consecutive images: their order is the data set's.
        return {"rows": list(chain.from_iterable(comm.gather(self.rows)))}


@contextmanager
def _official(
    data: DetectionData, config: DetectConfig, name: str
) -> Iterator[list[DatasetEvaluator]]:
    """The data set's evaluator, which reads its files itself; none where these are not what is tested.

    That is so for a held-out part, and where something wrong was left out. detectron2 looks the data
    set up under ``name`` while the body runs.
    """
    meta = MetadataCatalog.get(name).set(thing_classes=data.classes)
    try:
        if "skipped_objects" in data.info.counts:
            yield []
        elif config.format == "coco":
            yield _coco(data, config, meta)
        else:
            yield _voc(data, config, meta)
    finally:
        MetadataCatalog.pop(name)


def _coco(data: DetectionData, config: DetectConfig, meta: Metadata) -> list[DatasetEvaluator]:
    if data.test_json == data.train_json:
        return []
    labels = {number: label for label, number in enumerate(data.category_ids)}
    meta.set(json_file=str(data.test_json), thing_dataset_id_to_contiguous_id=labels)
    tasks = ("bbox", "segm") if config.mask else ("bbox",)
    return [_Coco(meta.name, tasks, [s.id for s in data.test])]


def _voc(data: DetectionData, config: DetectConfig, meta: Metadata) -> list[DatasetEvaluator]:
    year, _, split = config.test_set.partition("/")
    folder = voc_folder(config.data, year)
    if year not in _YEARS or split_ids(folder, split) != [s.id for s in data.test]:
        return []
    meta.set(dirname=str(folder), year=int(year), split=split)
    return [_Voc(meta.name)]


class _Coco(COCOEvaluator):
    """On the images that were tested, of all in the annotations."""

    def __init__(self, name: str, tasks: tuple[str, ...], images: list[int | str]) -> None:
        super().__init__(name, tasks)
        self.images = images

    def evaluate(self, img_ids: list[int | str] | None = None) -> Any:
        with redirect_stdout(io.StringIO()):  # pycocotools prints; standard output is for results
            return super().evaluate(img_ids or self.images)


class _Voc(PascalVOCDetectionEvaluator):
    """It reads boxes of whole numbers only, and needs fields that a data set of one's own may lack."""

    def evaluate(self) -> Any:
        try:
            return super().evaluate()
        except (AttributeError, TypeError, ValueError) as error:
            say(f"detectron2's VOC evaluator cannot read these annotations: {first_line(error)}")
            return None
