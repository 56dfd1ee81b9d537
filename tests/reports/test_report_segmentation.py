"""The sections of segmentation: classes, protocol, published rows, pictures, what pre-training brought."""

import csv
import re
from importlib import resources
from pathlib import Path
from typing import Any

import made_records as made
import numpy as np
import pytest
from PIL import Image
from test_report_numbers import number, tables

from eval_segmentation import VERBS
from reports.report import write_report
from siambench.config import make_config, protocol_of
from siambench.record import Metric

FCN, FCN16 = "voc12aug-fcn-20k", "voc12aug-fcn16s-30k"


def report(folder: Path) -> str:
    return write_report([folder], folder / "report.md", ["x", "y"]).read_text()


def settings(preset: str, **fields: Any) -> dict[str, Any]:
    """The settings of a preset, as its records hold them; the data set is said elsewhere."""
    values = {"backbone": "b", "data": "d", "preset": preset, **fields}
    config = make_config(VERBS["segment"], values)
    return {k: v for k, v in protocol_of(config).items() if k != "dataset"}


def save(folder: Path, name: str, miou: float, preset: str = FCN, **more: Any) -> Path:
    metrics = more.pop("metrics", [Metric("mIoU", miou, split="val")])
    rec = made.record(preset, name, metrics, verb="segment", **more)
    return made.save(folder, rec)


def section(text: str, preset: str) -> str:
    return text.split(f"## Segmentation: `{preset}`")[1].split("\n## ")[0]


@pytest.mark.parametrize(("metric", "what"), [("IoU", "IoU"), ("acc", "Accuracy")])
def test_single_classes_are_folded_below_the_table(tmp_path: Path, metric: str, what: str) -> None:
    records = made.fill(tmp_path, benchmarks=(FCN,))
    text = report(tmp_path)
    assert f"<summary>{what} of each class, %</summary>" in text
    (found,) = [t for (_, c), t in tables(text).items() if f"{what} of each class" in c]
    assert list(found.columns) == ["epochs", "c0", "c1"]
    for record in records:
        for name in ("c0", "c1"):
            cell = number(found.loc[record.backbone["name"], name])
            assert cell[0] == pytest.approx(record.metric(metric, **{"class": name}), abs=0.0501)
    assert "Other metrics" not in text


@pytest.mark.parametrize(("classes", "shown"), [(80, True), (81, False)])
def test_many_classes_are_in_the_records_alone(tmp_path: Path, classes: int, shown: bool) -> None:
    save(tmp_path, "x", 0, metrics=made.segment(np.random.default_rng(0), classes))
    text = report(tmp_path)
    assert ("<summary>IoU of each class" in text) == shown
    assert ("IoU of each class: 81 are too many for a table" in text) != shown


def test_what_pre_training_brought(tmp_path: Path) -> None:
    for name, values in {"x": (40.0, 43.0), "y": (20.0, 20.5), "random": (30.0, 30.25)}.items():
        for trial, value in enumerate(values):
            save(tmp_path, name, value, trial=trial)
    line = "mIoU above `random`, which was not pre-trained: x +11.38, y -9.88."
    assert line in report(tmp_path)


@pytest.mark.parametrize("names", [("x", "y"), ("random",)])
def test_without_a_random_backbone_to_compare_with_nothing_is_said(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        save(tmp_path, name, 40.0)
    assert "not pre-trained" not in report(tmp_path)


@pytest.mark.parametrize(
    ("preset", "fields", "expected"),
    [
        (
            FCN,
            {},
            "Network: FCN, the kind of mmselfsup's tables: output stride 8, 2 × 512 channels at "
            "dilation 1, auxiliary head × 0.4. Training: batch 16, 20,000 iterations, crops of 512 "
            "px, learning rate 0.01, poly schedule. Test: whole images.",
        ),
        (
            FCN16,
            {},
            "Network: FCN-16s, the kind of MoCo's paper: output stride 16, 2 × 256 channels at "
            "dilation 6, no auxiliary head. Training: batch 16, 30,000 iterations, crops of 513 px, "
            "learning rate 0.003, × 0.1 at 70 % and 90 %. Test: whole images.",
        ),
        (
            "cityscapes-fcn-40k",
            {"test_scales": [0.5, 1.0], "test_flip": True},
            "Test: windows of 769 px every 513 px, scales 0.5, 1, mirrored too.",
        ),
    ],
)
def test_the_section_opens_with_its_protocol(
    tmp_path: Path, preset: str, fields: dict[str, Any], expected: str
) -> None:
    save(tmp_path, "x", 40.0, preset, **settings(preset, **fields))
    assert expected in section(report(tmp_path), preset)


def test_two_networks_are_two_sections_that_say_that_they_do_not_compare(tmp_path: Path) -> None:
    for name in ("x", "y"):
        for preset in (FCN, FCN16):
            save(tmp_path, name, 40.0, preset, dataset="voc12aug", **settings(preset))
    text = report(tmp_path)
    anchors = dict(re.findall(r'<a id="(s\d)"></a>\n\n## Segmentation: `([\w-]+)`', text))
    assert sorted(anchors.values()) == sorted([FCN, FCN16])
    for anchor, preset in anchors.items():
        (other,) = [p for p in anchors.values() if p != preset]
        assert f"**Not comparable** with [`{preset}`](#{anchor})" in section(text, other)


def test_one_network_is_told_of_no_other(tmp_path: Path) -> None:
    save(tmp_path, "x", 40.0, FCN)  # of the first version: without a stride, which was 8
    save(tmp_path, "x", 40.0, "cityscapes-fcn-40k", **settings("cityscapes-fcn-40k"))
    assert "Not comparable" not in report(tmp_path)


def test_published_rows_are_those_of_the_very_network(tmp_path: Path) -> None:
    text = resources.files("reports").joinpath("published_results.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    for preset, data in ((FCN, "voc12aug"), (FCN16, "voc12aug")):
        save(tmp_path, "x", 40.0, preset, dataset=data, **settings(preset))
    save(tmp_path, "x", 40.0, "cityscapes-fcn16s-90k", dataset="cityscapes")
    found = tables(report(tmp_path))
    for preset in (FCN, FCN16, "cityscapes-fcn16s-90k"):
        (table,) = [t for (h, c), t in found.items() if f"`{preset}`" in h and "Semantic" in c]
        published = table[table.index.str.startswith("*")]
        expected = [r["value"] for r in lines if r["benchmark"] == preset]
        assert [v.removesuffix(" ⚠") for v in published["mIoU"]] == expected
        assert len(expected) == (10 if preset == FCN else 3)
    assert [r["value"] for r in lines if r["benchmark"] == FCN16] == ["74.4", "72.5", "73.6"]


def test_pictures_of_the_first_trial_are_folded_and_matrices_linked(tmp_path: Path) -> None:
    for level, name in enumerate(("x", "y")):
        for trial in range(2):
            path = save(tmp_path, name, 40.0, trial=trial)
            job = tmp_path / "jobs" / path.stem
            job.mkdir(parents=True)
            Image.new("L", (9, 9), 100 * level + 50 * trial).save(job / "segmentation.png")
            (job / "confusion.csv").write_text("")
    save(tmp_path, "no files", 40.0)
    text = report(tmp_path)
    folded = text.split(
        "<summary>Predicted labels beside the ground truth of some val images (first trial)</summary>"
    )[1].split("</details>")[0]
    shown = re.findall(r'<img src="([^"]+)"', folded)
    assert shown == ["plots/segmentation-s1-1.png", "plots/segmentation-s1-2.png"]
    assert [Image.open(tmp_path / path).getpixel((0, 0)) for path in shown] == [0, 100]
    links = re.findall(r"\]\((\S+confusion.csv)\)", text)
    assert len(links) == 4
    assert all((tmp_path / link).is_file() for link in links)
