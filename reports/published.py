"""The published numbers (published_results.csv) and when they may stand beside ours."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

# The data set behind each published benchmark, by the name a record gives the real one.
DATASETS = {
    "in1k-linear": "imagenet-1k",
    "in1k-linear-mhead": "imagenet-1k",
    "in1k-knn": "imagenet-1k",
    "voc07-svm": "voc07",
    "voc07-lowshot": "voc07",
    "voc07-frcnn-c4": "voc07",
    "voc0712-frcnn-c4-24k": "voc0712",
    "coco-mrcnn-c4-1x": "coco2017",
    "coco-mrcnn-fpn-1x": "coco2017",
    "voc12aug-fcn-20k": "voc12aug",
    "voc12aug-fcn16s-30k": "voc12aug",
    "cityscapes-fcn16s-90k": "cityscapes",
    "places205-linear": "places205",
    "places205-linear-mhead": "places205",
    "inat18-linear": "inat18",
}
# Presets whose name says more than the published benchmark's: SimSiam's Table 4 and the pages beside
# it use LARS for 90 epochs, mmselfsup's heads on feature1 ... feature5 SGD for 90.
PRESETS = {
    "in1k-linear-lars-90e": "in1k-linear",
    "in1k-linear-mhead-90e": "in1k-linear-mhead",
}
# Published benchmarks that another engine measured, so that their rows have a table of their own.
BESIDE = {"voc0712-frcnn-c4-24k": "voc0712-frcnn-c4-24k-mmdet"}
# Notes of rows measured with another engine or protocol than the benchmark's first source.
ELSEWISE = ("mmdetection", "VICReg protocol")


@dataclass
class PublishedRow:
    """One line of a published table.

    Attributes:
        method, epochs: as printed there; epochs may be ``""``.
        source: paper or page.
        notes: what was said beside it.
        values: metric (``top1``, ``mAP_k1``, ``top1_k20_T0.07``, ``box_AP50``) to the number as
            printed.
        layer: ``feature1`` to ``feature5`` where the row names its best layer.
    """

    method: str
    epochs: str
    source: str
    notes: list[str]
    values: dict[str, str]

    @property
    def layer(self) -> str:
        """The layer the row was measured on, or ``""``."""
        return next((n for n in self.notes if re.fullmatch(r"feature\d", n)), "")

    @property
    def anomalous(self) -> bool:
        """Whether the number is flagged as one to doubt."""
        return any(n.startswith("anomalous") for n in self.notes)

    @property
    def elsewise(self) -> bool:
        """Whether another engine or protocol made it: a table of its own, then."""
        return any(n in ELSEWISE for n in self.notes)


def published_name(preset: str) -> str:
    """The published benchmark that a preset repeats, or ``""``."""
    name = PRESETS.get(preset, preset)
    return name if name in DATASETS else ""


def published_rows(names: tuple[str, ...]) -> list[PublishedRow]:
    """The published rows of these benchmarks, in the file's order, without ablations.

    Lines with equal method, epochs and source are one row until a metric repeats.
    """
    rows: list[PublishedRow] = []
    for line in _lines():
        if line["benchmark"] not in names or line["note"].startswith("ablation"):
            continue
        metric, note = line["metric"], line["note"]
        if note.startswith("T="):
            metric, note = f"{metric}_T{note[2:]}", ""
        who = (line["method"], line["pretrain_epochs"], line["source"])
        row = next((r for r in rows if _fits(r, who, metric)), None)
        if row is None:
            rows.append(row := PublishedRow(*who, notes=[], values={}))
        row.values[metric] = line["value"]
        if note and note not in row.notes:
            row.notes.append(note)
    return rows


def _fits(row: PublishedRow, who: tuple[str, str, str], metric: str) -> bool:
    return (row.method, row.epochs, row.source) == who and metric not in row.values


@cache
def _lines() -> list[dict[str, str]]:
    text = resources.files("reports").joinpath("published_results.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))
