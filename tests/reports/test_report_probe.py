"""The sections of the linear probe and kNN: roads, intervals, choices, single classes, pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import made_records as made
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report_numbers import number, tables

from reports.report import write_report
from siambench.record import Metric

LARS = "in1k-linear-lars-90e"
LAYER = {"layer": "avgpool"}


def report(folder: Path, order: Sequence[str] = ()) -> str:
    return write_report([folder], folder / "report.md", list(order)).read_text()


def table(text: str, caption: str, heading: str = "") -> pd.DataFrame:
    (found,) = [t for (h, c), t in tables(text).items() if caption in c and heading in h]
    return found


def plain(cells: pd.Series) -> list[str]:
    """Without links."""
    text = [re.sub(r" ?<sup>.*</sup>", "", cell) for cell in cells]
    return [re.sub(r"\[([^]]*)\]\[r\d+\]", r"\1", cell) for cell in text]


def metrics(values: dict[str, float], **params: object) -> list[Metric]:
    return [Metric(n, v, split="val", params={**LAYER, **params}) for n, v in values.items()]


def sweep(
    held_out: dict[tuple[float, float], float],
    tested: dict[tuple[float, float], float],
    layer: str = "avgpool",
    trained_on: str = "train",
) -> list[Metric]:
    found = []
    for at, value in held_out.items():
        params = {"layer": layer, "base_lr": at[0], "weight_decay": at[1]}
        found.append(Metric("top1_holdout", value, split=trained_on, params=params))
        found.append(Metric("top1_sweep", tested[at], split="val", params=params))
    best = max(tested.values())
    return [*found, Metric("top1_test_chosen", best, split="val", params={"layer": layer})]


def test_interval_stands_beside_its_number(tmp_path: Path) -> None:
    values = {"top1": 50.0, "top1_ci_low": 47.04, "top1_ci_high": 52.96, "top5": 80.0}
    values["top1_mean_class"] = 49.5
    made.save(tmp_path, made.record(LARS, "a", metrics(values)))
    found = table(text := report(tmp_path), "Linear classification on avgpool")
    assert list(found.columns) == ["epochs", "top-1", "95 %", "top-5", "class mean"]
    assert plain(found.loc["a"])[1:] == ["50.0", "47.0–53.0", "80.0", "49.5"]
    assert "interval is over the test images (bootstrap):" in text
    assert "± is over" not in text
    assert "Other metrics" not in text


def test_interval_of_several_trials_is_told_from_their_spread(tmp_path: Path) -> None:
    for trial, low, top1, high in ((0, 40.0, 45.0, 50.0), (1, 44.0, 47.0, 51.0)):
        values = {"top1": top1, "top1_ci_low": low, "top1_ci_high": high}
        made.save(tmp_path, made.record(LARS, "a", metrics(values), trial=trial))
    found = table(text := report(tmp_path), "Linear classification on avgpool")
    # mean 46, sample standard deviation of 45 and 47: sqrt(2); ends (40 + 44) / 2 and (50 + 51) / 2
    assert plain(found.loc["a"])[1:] == ["46.0 ± 1.4", "42.0–50.5"]
    assert "± is over the trials" in text
    assert "ends averaged over the trials" in text


def test_what_was_chosen_over_trials(tmp_path: Path) -> None:
    held = [
        {(0.1, 0.0): 60.0, (1.0, 0.0): 50.0},
        {(0.1, 0.0): 62.0, (1.0, 0.0): 62.0},  # of equals the first
        {(0.1, 0.0): 50.0, (1.0, 0.0): 64.0},
    ]
    tested = [{(0.1, 0.0): 40.0 + t, (1.0, 0.0): 44.0} for t in range(3)]
    for trial, reported in enumerate((40.0, 41.0, 44.0)):
        rec = metrics({"top1": reported}) + sweep(held[trial], tested[trial])
        made.save(tmp_path, made.record(LARS, "a", rec, trial=trial))
    text = report(tmp_path)
    found = table(text, "What was chosen").loc["a"]
    assert dict(zip(found.index, plain(found), strict=True)) == {
        "base_lr": "0.1",
        "weight decay": "0",
        "trials that chose it": "2 of 3",
        "held-out top-1": "62.00 ± 2.00",
        "test top-1": "41.67 ± 2.08",
        "test top-1 if chosen on test": "44.00 ± 0.00",
    }
    whole = table(text, "The whole sweep")
    assert list(whole.columns) == ["scored on", "0.1", "1"]
    assert plain(whole["0.1"]) == ["57.33 ± 6.43", "41.00 ± 1.00"]
    assert [number(c)[2] for c in whole["1"]] == [True, True]
    assert [number(c)[2] for c in whole["0.1"]] == [False, False]
    assert "Other metrics" not in text


def test_choices_of_rates_and_decays_at_every_layer(tmp_path: Path) -> None:
    grid = [(rate, decay) for rate in (0.01, 3.0) for decay in (0.0, 1e-4)]
    rng = np.random.default_rng(0)
    expected = {}
    for name in ("b", "a"):
        rec = []
        for layer in ("feature4", "avgpool"):
            held, tested = (dict(zip(grid, rng.permutation(40) + 20.0, strict=False)) for _ in "ht")
            chosen = max(held, key=held.__getitem__)
            expected[name, layer] = [
                f"{chosen[0]:g}",
                f"{chosen[1]:g}",
                *(f"{v:.2f}" for v in (held[chosen], tested[chosen], max(tested.values()))),
            ]
            rec.append(Metric("top1", tested[chosen], split="val", params={"layer": layer}))
            rec += sweep(held, tested, layer, trained_on="trainval")
        made.save(tmp_path, made.record(LARS, name, rec))
    text = report(tmp_path, ["b"])
    found = table(text, "What was chosen")
    assert list(zip(found.index, found["layer"], strict=True)) == list(expected)
    assert [plain(row[1:]) for _, row in found.iterrows()] == list(expected.values())
    whole = table(text, "The whole sweep")
    assert list(whole.columns) == ["layer", "scored on", "weight decay", "0.01", "3"]
    assert len(whole) == 2 * 2 * 2 * 2  # backbones, layers, splits, decays
    marks = [number(cell)[2] for rate in ("0.01", "3") for cell in whole[rate]]
    assert sum(marks) == 8  # one per backbone, layer and split
    assert "Other metrics" not in text


def test_records_of_the_first_version_have_their_choice_too(tmp_path: Path) -> None:
    old = metrics({"top1": 43.0, "top5": 80.0})
    for rate, held, tested in ((0.1, 40.0, 46.5), (10.0, 44.0, 43.0)):
        params = {**LAYER, "base_lr": rate}
        old.append(Metric("top1_lr", tested, split="val", params=params))
        old.append(Metric("top1_holdout", held, split="train", params=params))
    made.save(tmp_path, made.record(LARS, "a", old))
    text = report(tmp_path)
    found = table(text, "What was chosen")
    assert "weight decay" not in found.columns
    assert plain(found.loc["a"]) == ["10", "44.00", "43.00", "46.50"]
    assert "95 %" not in text
    assert "Other metrics" not in text


def test_the_two_roads_are_two_sections_and_the_short_one_has_no_published_rows(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        for road in ("cached", "online"):
            rng = np.random.default_rng(len(road))
            settings = {"road": road, "views": 2 * (road == "cached")}
            rec = made.record(LARS, name, made.linear(rng), dataset="imagenet-1k", **settings)
            made.save(tmp_path, rec)
    text = report(tmp_path)
    headings = re.findall(r"^## (Linear.*)$", text, re.M)
    assert len(headings) == 2
    assert headings[0].startswith("Linear probe: ")
    assert headings[1].startswith("Linear probe, short road: ")
    online, short = (part.split("\n## ")[0] for part in text.split("\n## Linear probe")[1:])
    assert "*BYOL*" in online
    assert "The papers' road" in online
    assert "published:" not in short
    assert "BYOL" not in short
    assert "**Short road**" in short
    assert "from the centre crop and 2 augmented views of each image" in short
    assert "published numbers, made with the papers' road, do not stand beside it" in short
    header = [c for c in table(text, "", "Which backbone").columns if LARS in c]
    assert ["short road" in column for column in header] == [False, True]


def test_several_labels_have_map_where_others_have_top1(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recs = {}
    for name in ("a", "b"):
        recs[name] = made.linear(rng, rates=(0.1, 1.0), classes=20, score="mAP")
        made.save(tmp_path, made.record("voc07-linear", name, recs[name], verb="linear"))
    text = report(tmp_path)
    found = table(text, "Linear classification on avgpool")
    assert list(found.columns) == ["epochs", "mAP", "95 %"]
    for name, rec in recs.items():
        value = rec[0].value
        assert number(found.loc[name, "mAP"])[0] == pytest.approx(value, abs=0.0501)
        assert plain(found.loc[name])[2] == f"{value - 2:.1f}–{value + 3:.1f}"
    assert table(text, "AP of each class (avgpool)").shape == (2, 21)
    assert "held-out mAP" in table(text, "What was chosen").columns
    assert any("mAP (avgpool)" in c for c in table(text, "", "Which backbone").columns)
    assert "Other metrics" not in text


@pytest.mark.parametrize(("count", "shown"), [(2, True), (50, True), (51, False)])
def test_single_classes_up_to_fifty(tmp_path: Path, count: int, shown: bool) -> None:
    layers = ("feature5", "avgpool")
    rec = made.linear(np.random.default_rng(0), layers, classes=count)
    made.save(tmp_path, made.record(LARS, "a", rec))
    text = report(tmp_path)
    found = [t for (_, c), t in tables(text).items() if "Accuracy of each class (avgpool), %" in c]
    assert len(found) == shown
    assert (f"{count} are too many for a table" in text) != shown
    if shown:
        expected = [f"{m.value:.1f}" for m in rec if m.name == "top1_class" and "avgpool" in str(m)]
        assert plain(found[0].loc["a"])[1:] == expected
    assert "Other metrics" not in text


def test_stages_have_their_intervals_and_class_means_folded(tmp_path: Path) -> None:
    layers = ("feature1", "feature5")
    rec = made.linear(np.random.default_rng(0), layers)
    made.save(tmp_path, made.record("in1k-linear-mhead-90e", "a", rec, verb="linear"))
    text = report(tmp_path)
    value = {m.params["layer"]: m.value for m in rec if m.name == "top1"}
    ends = [f"{value[x] - 2:.2f}–{value[x] + 3:.2f}" for x in layers]
    found = table(text, "<summary>Each stage's top-1, %. The 95 % interval")
    assert plain(found.loc["a"])[1:] == ends
    found = table(text, "<summary>Class mean on each stage's output")
    assert plain(found.loc["a"])[1:] == [f"{value[x] - 1:.2f}" for x in layers]


def test_knn_has_intervals_top5_and_class_means_folded(tmp_path: Path) -> None:
    rec = made.knn(np.random.default_rng(0))
    made.save(tmp_path, made.record("in1k-knn", "a", rec))
    text = report(tmp_path)
    (value,) = [m.value for m in rec if m.name == "top1" and m.params == {"k": 100, "T": 0.2}]
    expected = {
        "<summary>Top-1, %. The 95 % interval": f"{value - 2:.1f}–{value + 3:.1f}",
        "<summary>Top-5": f"{value + 20:.1f}",
        "<summary>Class mean": f"{value - 1:.1f}",
    }
    for caption, cell in expected.items():
        found = table(text, caption)
        assert len(found.columns) == 1 + 8
        assert plain(found.loc[:, "k=100, T=0.2"]) == [cell]
    assert plain(table(text, "each class (T = 0.07, k = 10)")["c0"]) == ["50.0"]
    assert "Other metrics" not in text


def test_knn_within_one_set_says_so(tmp_path: Path) -> None:
    rec = made.knn(np.random.default_rng(0), split="train")
    made.save(tmp_path, made.record("in1k-knn", "a", rec))
    text = report(tmp_path)
    found = table(text, "T = 0.07, each image left out of its own neighbours, top-1 %:")
    (value,) = [m.value for m in rec if m.name == "top1" and m.params == {"k": 20, "T": 0.07}]
    assert plain(found["k=20"]) == [f"{value:.1f}"]
    first = table(text, "", "Which backbone").columns
    assert any("top-1 (k=20, T=0.07)" in column for column in first)
    assert "Other metrics" not in text


def test_a_score_on_the_training_split_does_not_pass_for_one_on_the_test_split(
    tmp_path: Path,
) -> None:
    on_train = Metric("top1", 99.0, split="train", params=LAYER)
    listed = Metric("top1_of", 7.0, split="val", params={"layer": ["a", "b"]})
    rec = [on_train, *metrics({"top1": 50.0}), listed]
    made.save(tmp_path, made.record(LARS, "a", rec))
    text = report(tmp_path)
    assert plain(table(text, "Linear classification on avgpool")["top-1"]) == ["50.0"]
    other = table(text, "Other metrics").loc["a"]
    assert plain(other)[1:] == ["99.00", "7.00"]


def answered(folder: Path, path: Path, colour: int, picture: bool = True) -> None:
    """A job's files."""
    job = folder / "jobs" / path.stem
    job.mkdir(parents=True)
    (job / "predictions.csv").write_text("image,label,predicted,score\n")
    if picture:
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(job / "confusion.png")


def test_pictures_of_confusion_and_predictions(tmp_path: Path) -> None:
    for number_of, name in enumerate(("b|<c>", "a", "no files")):
        for trial in range(2):
            path = made.save(
                tmp_path,
                made.record("in1k-knn", name, made.knn(np.random.default_rng(0)), trial=trial),
            )
            if name != "no files":
                answered(tmp_path, path, 100 * number_of + trial)
    text = report(tmp_path, ["b|<c>", "a"])
    shown = re.findall(r'<img src="([^"]+)"', text)
    # the first trial of each backbone, in the order of the rows, copied beside the report
    assert shown == ["plots/confusion-s1-1.png", "plots/confusion-s1-2.png"]
    colours = [Image.open(tmp_path / path).getpixel((0, 0)) for path in shown]
    assert colours == [(0, 0, 0), (100, 0, 0)]
    assert "Which class is taken for which (T = 0.07, k = 10, first trial):" in text
    found = table(text, "Which class is taken")
    assert [found.index.name, *found.columns] == [r"b\|\<c\>", "a"]
    links = re.findall(r"\]\((\S+predictions.csv)\)", text)
    assert len(links) == 4
    assert all((tmp_path / unquote(link)).is_file() for link in links)
    assert report(tmp_path, ["b|<c>", "a"]) == text


def test_many_pictures_are_folded_and_absent_ones_no_error(tmp_path: Path) -> None:
    for i in range(5):
        rec = made.record(LARS, f"net{i}", made.linear(np.random.default_rng(i)))
        path = made.save(tmp_path, rec)
        if i != 2:
            answered(tmp_path, path, i, picture=i != 3)
    text = report(tmp_path)
    assert len(re.findall("<img src", text)) == 3
    assert "<summary>Which class" not in text
    assert text.count("predictions.csv)") == 4
    rec = made.record(LARS, "net9", made.linear(np.random.default_rng(9)))
    answered(tmp_path, made.save(tmp_path, rec), 9)
    folded = report(tmp_path).split("<summary>Which class is taken for which (avgpool)</summary>")[
        1
    ]
    assert len(re.findall("<img src", folded.split("</details>")[0])) == 4
