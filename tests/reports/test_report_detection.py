"""The sections of detection: folded tables, schedule, search, curves, pictures, published rows."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_records as made
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report_numbers import number, tables

from reports.report import write_report
from reports.stats import Metrics
from reports.tables import MOST_PAIRS
from siambench.record import Metric, write_record

VOC, COCO = "voc07-frcnn-c4", "coco-mrcnn-c4-1x"
SCHEDULE = {"batch_size": 16, "reference_batch": 16, "lr": 0.02, "max_iter": 9000}
BLUE, VERMILION, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def report(folder: Path, order: Sequence[str] = ()) -> str:
    return write_report([folder], folder / "report.md", list(order)).read_text()


def table(text: str, caption: str) -> pd.DataFrame:
    (found,) = [t for (_, c), t in tables(text).items() if caption in c]
    return found


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def save(folder: Path, name: str, metrics: list[Metric], **settings: Any) -> Path:
    benchmark = settings.pop("benchmark", VOC)
    return made.save(folder, made.record(benchmark, name, metrics, **settings))


def test_sizes_and_classes_are_folded_below_the_table(tmp_path: Path) -> None:
    records = made.fill(tmp_path, benchmarks=(COCO,))
    text = report(tmp_path)
    for caption, names in {
        "AP of small (below 32² px), medium": ["APs", "APm", "APl"],
        "Box AP of each class (101 points)": ["c0", "c1"],
        "Mask AP of each class (101 points)": ["c0", "c1"],
    }.items():
        assert f"<summary>{caption}" in text
        found = table(text, caption)
        for record in records:
            row = found.loc[record.backbone["name"]]
            for name in names:
                if name.startswith("c"):
                    kind = caption.split()[0].lower()
                    expected = {f"{name}": record.metric(f"{kind}_AP_class", **{"class": name})}
                else:
                    expected = {
                        f"{k} {name}": record.metric(f"{k}_{name}") for k in ("box", "mask")
                    }
                for column, value in expected.items():
                    assert number(row[column])[0] == pytest.approx(value, abs=0.0501)
    assert "Other metrics" not in text


def test_classes_of_voc_are_those_of_the_published_rule(tmp_path: Path) -> None:
    (record, *_) = made.fill(tmp_path, backbones=("a",), benchmarks=(VOC,))
    found = table(report(tmp_path), "Box AP of each class (11 points)")
    expected = record.metric("box_AP_class", rule="11-point", **{"class": "c1"})
    assert number(found.loc["a", "c1"])[0] == pytest.approx(expected, abs=0.0501)


@pytest.mark.parametrize(("classes", "shown"), [(80, True), (81, False)])
def test_more_classes_than_cocos_are_in_the_records_alone(
    tmp_path: Path, classes: int, shown: bool
) -> None:
    save(tmp_path, "a", made.coco(rng(), classes), benchmark=COCO)
    text = report(tmp_path)
    assert ("Box AP of each class" in text) == shown
    assert ("AP of each class: 81 are too many for a table" in text) != shown


def test_what_detectron2_prints_is_one_folded_table(tmp_path: Path) -> None:
    own = [
        Metric("box_AP_detectron2", 12.344),
        Metric("box_AP50_detectron2", 34.561, params={"rule": "11-point"}),
    ]
    save(tmp_path, "a", [*made.voc(rng()), *own], engine="detectron2")
    text = report(tmp_path)
    assert "<summary>As detectron2's own evaluators print them, %</summary>" in text
    found = table(text, "own evaluators")
    assert list(found.columns) == ["epochs", "box AP", "box AP50 (11-point)"]
    assert [number(c)[0] for c in found.loc["a"].tolist()[1:]] == [12.34, 34.56]
    assert "Other metrics" not in text


@pytest.mark.parametrize(
    ("settings", "ran", "line"),
    [
        ({}, (0.02, 9000), "Schedule: batch 16, 9,000 iterations, learning rate 0.02."),
        (
            {"batch_size": 8, "lr": 0.04},
            (0.02, 18000),
            "Schedule: batch 8, 18,000 iterations, learning rate 0.02. Scaled linearly from a "
            "schedule for batch 16: lr 0.04 → 0.02, 2x iterations.",
        ),
        (
            {"batch_size": 64, "lr": [0.01, 0.02]},
            (0.04, 2250),
            "Schedule: batch 64, 2,250 iterations, learning rate the best of 0.01, 0.02 on a "
            "held-out part of the training set, per backbone. Scaled linearly from a schedule for "
            "batch 16: learning rates × 4, 0.25x iterations.",
        ),
    ],
)
def test_the_schedule_that_ran(
    tmp_path: Path, settings: dict[str, Any], ran: tuple[float, int], line: str
) -> None:
    metrics = [*made.voc(rng()), *made.schedule(*ran)]
    save(tmp_path, "a", metrics, **{**SCHEDULE, **settings})
    text = report(tmp_path)
    assert line in text.splitlines()
    assert "Other metrics" not in text


def test_records_of_the_first_version_have_their_schedule_in_the_protocol(tmp_path: Path) -> None:
    save(tmp_path, "a", made.voc(rng()), batch_size=4, lr=0.02, max_iter=200)
    assert "Schedule: batch 4, 200 iterations, learning rate 0.02." in report(tmp_path)


def test_a_search_shows_every_rate_and_the_one_that_trained(tmp_path: Path) -> None:
    settings = {**SCHEDULE, "batch_size": 8, "lr": [0.04, 0.01, 0.02], "holdout": 0.1}
    searched = {
        "a": (0.01, {0.04: 8.125, 0.01: 20.25, 0.02: 31.5}),  # 0.02 at batch 16
        "b": (0.005, {0.01: 9.75, 0.02: 9.25}),  # 0.04 diverged
    }
    files: dict[tuple[str, int], Path] = {}
    for name, (lr, scores) in searched.items():
        for trial in range(2):  # they share the search
            metrics = [*made.voc(rng()), *made.schedule(lr, 18000, scores)]
            files[name, trial] = save(tmp_path, name, metrics, trial=trial, **settings)
    text = report(tmp_path)
    found = table(text, "Learning rates were searched on a held-out part of the training set")
    assert list(found.columns) == ["lr 0.01", "lr 0.02", "lr 0.04", "trained with, batch 8"]
    for name, (lr, scores) in searched.items():
        for rate in (0.01, 0.02, 0.04):
            cell = found.loc[name, f"lr {rate:g}"]
            if rate not in scores:
                assert cell == "–"
                continue
            mean, std, bold = number(cell)
            assert (mean, std) == (pytest.approx(scores[rate], abs=0.00501), None)
            assert bold == (rate == 2 * lr)
            link = re.search(r"\[(r\d+)\]", cell).group(1)
            assert f"[{link}]: records/{files[name, 0].name}" in text
        assert number(found.loc[name, "trained with, batch 8"])[0] == lr
    assert "Other metrics" not in text


def test_masks_in_a_search_are_folded(tmp_path: Path) -> None:
    masks = [
        Metric("mask_AP_holdout", value, split="holdout", params={"lr": rate})
        for rate, value in ((0.02, 3.25), (0.01, 4.5))
    ]
    metrics = [*made.coco(rng()), *made.schedule(0.01, 9000, {0.01: 5.0, 0.02: 4.0}), *masks]
    save(tmp_path, "a", metrics, benchmark=COCO, **{**SCHEDULE, "lr": [0.01, 0.02]})
    found = table(report(tmp_path), "<summary>Mask AP on the held-out part by learning rate")
    assert [number(found.loc["a", f"lr {r}"])[0] for r in (0.01, 0.02)] == [4.5, 3.25]


def colours(path: Path) -> dict[tuple[int, int, int], int]:
    with Image.open(path) as image:
        return {colour: n for n, colour in image.convert("RGB").getcolors(2**24)}


def curve_heights(path: Path, colour: tuple[int, int, int]) -> list[tuple[int, float]]:
    """Row of the picture to the share of its widest line in ``colour``, above the legend."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    hit = (pixels == colour).all(-1).sum(1)
    return [(y, n / hit.max()) for y, n in enumerate(hit.tolist()) if n > 0.3 * hit.max()]


def test_precision_recall_curves_are_those_of_the_first_trial(tmp_path: Path) -> None:
    levels = {"x": 0.8, "y": 0.5}
    for name, level in levels.items():
        for trial in range(2):
            path = save(tmp_path, name, made.voc(rng()), trial=trial)
            made.detections(tmp_path, path, level if trial == 0 else 0.1)
    text = report(tmp_path, ["x", "y"])
    assert "![Precision against recall](plots/precision-s1.png)" in text
    assert (
        "Precision of the first trial at each recall, mean over classes: solid at IoU 0.5, dashed at "
        "0.75." in text
    )
    plot = tmp_path / "plots" / "precision-s1.png"
    found = {name: curve_heights(plot, c) for name, c in (("x", BLUE), ("y", VERMILION))}
    solid = {name: np.mean([y for y, n in rows if n > 0.9]) for name, rows in found.items()}
    dashed = {name: np.mean([y for y, n in rows if n < 0.8]) for name, rows in found.items()}
    percent = (solid["y"] - solid["x"]) / 30  # straight lines, 30 points apart
    assert dashed["x"] - solid["x"] == pytest.approx(40 * percent, abs=3)
    assert dashed["y"] - solid["y"] == pytest.approx(25 * percent, abs=3)
    first = plot.read_bytes()
    assert report(tmp_path, ["x", "y"]) == text
    assert plot.read_bytes() == first


def test_masks_have_a_panel_of_their_own(tmp_path: Path) -> None:
    widths = []
    for folder, kinds in (("one", ("box",)), ("two", ("box", "mask"))):
        path = save(tmp_path / folder, "a", made.coco(rng()), benchmark=COCO)
        made.detections(tmp_path / folder, path, 0.5, kinds)
        report(tmp_path / folder)
        with Image.open(tmp_path / folder / "plots" / "precision-s1.png") as image:
            widths.append(image.width)
    assert widths[1] == 2 * widths[0]


def test_of_many_backbones_the_best_have_curves_and_each_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        metrics = [Metric("box_AP50", 10.0 + i, params={"rule": "11-point"})]
        for trial in range(2):
            made.detections(tmp_path, save(tmp_path, f"n{i:02}", metrics, trial=trial), i / 12)
    read: list[Path] = []
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **k: (read.append(self), read_text(self, *a, **k))[1]
    )
    text = report(tmp_path)
    files = [path for path in read if path.name == "precision.json"]
    assert len(files) == len(set(files)) == MOST_PAIRS
    names = sorted(path.parent.name.split("-")[3] for path in files)
    assert names == [f"n{i:02}" for i in range(12 - MOST_PAIRS, 12)]
    assert f"dashed at 0.75; {MOST_PAIRS} of 12 backbones." in text
    seven = {BLUE, VERMILION, GREEN, (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0)}
    assert seven <= set(colours(tmp_path / "plots" / "precision-s1.png"))


GOOD = {"recall": [0, 1], "iou": [0.5, 0.75], "precision": {"box": {"a": [[1, 1], [1, 1]]}}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"recall": [0, 1]',
        json.dumps({**GOOD, "iou": [0.5]}),
        json.dumps({**GOOD, "recall": [0, 0.5, 1]}),
        json.dumps({**GOOD, "precision": {"box": {}}}),
        json.dumps({**GOOD, "precision": {"box": {"a": [[1, 1]]}}}),
        json.dumps({**GOOD, "precision": {"box": {"a": [[1, None], [1, 1]]}}}),
        json.dumps({**GOOD, "precision": {"box": [1]}}),
        "\xff",
    ],
)
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, "a", made.voc(rng()))
    job = made.detections(tmp_path, path, 0.5)
    (job / "precision.json").write_bytes(content.encode("latin-1"))
    assert "precision-s1.png" not in report(tmp_path)
    (job / "precision.json").write_text(json.dumps(GOOD))
    assert "precision-s1.png" in report(tmp_path)


def test_a_report_without_jobs_has_neither_curves_nor_pictures(tmp_path: Path) -> None:
    made.fill(tmp_path, benchmarks=(VOC, COCO))
    text = report(tmp_path)
    shown = set(re.findall(r"plots/([a-z]+)", text))
    assert shown == {"classes"}
    assert {p.name.split("-")[0] for p in (tmp_path / "plots").iterdir()} == shown


def test_pictures_of_the_first_trial_are_folded_and_predictions_linked(tmp_path: Path) -> None:
    for number_of, name in enumerate(("x", "y")):
        for trial in range(2):
            path = save(tmp_path, name, made.voc(rng()), trial=trial)
            made.detections(tmp_path, path, 0.4 * number_of + 0.2 * trial)
    save(tmp_path, "no files", made.voc(rng()))
    text = report(tmp_path, ["y", "x"])
    folded = text.split(
        "<summary>Detections beside the ground truth of some test images (first trial)</summary>"
    )[1].split("</details>")[0]
    shown = re.findall(r'<img src="([^"]+)"', folded)
    assert shown == ["plots/detections-s1-1.png", "plots/detections-s1-2.png"]
    assert [Image.open(tmp_path / path).getpixel((0, 0)) for path in shown] == [102, 0]
    assert 'alt="Detections of y"' in folded
    links = re.findall(r"\]\((\S+predictions.json)\)", text)
    assert len(links) == 4
    assert all((tmp_path / link).is_file() for link in links)


def shown_published(folder: Path, overrides: list[str], benchmark: str = VOC, **settings) -> str:
    data = made.VERBS[benchmark][2] if benchmark in made.VERBS else settings.pop("dataset")
    make = made.coco if benchmark.startswith("coco") else made.voc
    settings = {**SCHEDULE, **settings}
    rec = made.record(benchmark, "a", make(rng()), dataset=data, verb="detect", **settings)
    write_record(made.save(folder, rec), replace(rec, overrides=overrides))
    return report(folder)


@pytest.mark.parametrize(
    ("overrides", "settings", "stand"),
    [
        ([], {}, True),
        (["engine"], {}, True),
        (["batch_size"], {"batch_size": 8}, True),
        (["lr"], {"lr": [0.01, 0.02]}, True),
        (["lr", "holdout", "engine", "batch_size"], {"lr": [0.01, 0.02]}, True),
        (["lr"], {"lr": 0.04}, False),
        (["lr"], {"lr": [0.04]}, False),
        (["batch_size", "reference_batch"], {"batch_size": 8, "reference_batch": 8}, False),
        (["max_iter"], {}, False),
        (["freeze_at", "engine"], {}, False),
    ],
)
def test_published_rows_stand_beside_engines_batches_and_searched_rates(
    tmp_path: Path, overrides: list[str], settings: dict[str, Any], stand: bool
) -> None:
    text = shown_published(tmp_path, overrides, engine="torchvision", **settings)
    assert ("*MoCo v2* <sup>" in text) == stand
    assert ("with which torchvision's engine is shown to agree" in text) == stand
    assert ("Settings that are not the preset's" in text) != stand


def test_both_engines_have_a_section_with_the_published_rows(tmp_path: Path) -> None:
    for engine in ("detectron2", "torchvision"):
        text = shown_published(tmp_path, ["engine"], engine=engine)
    headings = re.findall(r"^## (Detection.*)$", text, re.M)
    assert [re.search(r"\((\w+), protocol", h).group(1) for h in sorted(headings)] == [
        "detectron2",
        "torchvision",
    ]
    for heading in headings:
        (found,) = [
            t for (h, c), t in tables(text).items() if h == heading and "11-point rule" in c
        ]
        assert found.index[0] == "a"
        assert any(who.startswith("*SimSiam, optimal*") for who in found.index)
    assert text.count("with which torchvision's engine is shown to agree") == 1


def test_rows_of_mmdetection_are_a_table_of_their_own(tmp_path: Path) -> None:
    for benchmark, data in (("coco-mrcnn-fpn-1x", "coco2017"), ("voc0712-frcnn-c4-24k", "voc0712")):
        text = shown_published(tmp_path / data, [], benchmark, dataset=data, engine="torchvision")
        caption = "Published with another engine or protocol"
        other = table(text, caption)
        assert any(who.startswith("*SimSiam*") for who in other.index)
        assert ("with which torchvision's engine" in text) == (data == "voc0712")
    assert "79.97" in set(other["box AP50"])  # mmselfsup's 24k schedule


def test_a_schedule_without_published_numbers_says_nothing_of_them(tmp_path: Path) -> None:
    text = shown_published(tmp_path, [], "coco-mrcnn-c4-2x", dataset="coco2017")
    assert "published" not in text.split("## Detection")[1].split("## How")[0]


def test_metrics_of_detection_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No table of single classes may go through all records once per class."""
    made.fill(tmp_path, backbones=tuple("abc"), benchmarks=(COCO,))
    calls: list[str] = []
    parts = Metrics.parts
    monkeypatch.setattr(
        Metrics, "parts", lambda self, name, *a: (calls.append(name), parts(self, name, *a))[1]
    )
    report(tmp_path)
    assert sorted(calls) == ["box_AP_class", "mask_AP_class"]
