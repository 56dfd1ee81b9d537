"""Bars of single classes, read back from their pixels; transfer against epochs of pre-training."""

from pathlib import Path

import made_records as made
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report_numbers import long_frame

from reports.bars import drawn
from reports.collect import collect
from reports.epochs import epoch_panels
from reports.layouts import layout
from reports.overview import headlines
from reports.plots import PALETTE
from reports.report import write_report
from reports.rows import backbones_of
from reports.sections import sections_of
from reports.states import States
from reports.stats import Metrics
from siambench.record import Metric


def save(folder: Path, name: str, classes: dict[str, float], trial: int = 0) -> None:
    of = {"rule": "11-point"}
    metrics = [Metric("box_AP", 50.0, params=of)]
    metrics += [Metric("box_AP_class", v, params={"class": c, **of}) for c, v in classes.items()]
    made.save(folder, made.record("voc07-frcnn-c4", name, metrics, trial=trial))


def bars(path: Path, colour: str) -> list[int]:
    """Heights in pixels of the solid bars of a colour, left to right; the legend's is left out."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    height = (pixels == rgb).all(-1)[: int(0.8 * len(pixels))].sum(0)
    edges = np.flatnonzero(np.diff(np.pad(height > 0, 1)))
    return [int(height[a:b].max()) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_bars_are_as_high_as_their_classes_the_highest_first(tmp_path: Path) -> None:
    save(tmp_path, "x", {"low": 10, "high": 80, "mid": 30})
    save(tmp_path, "y", {"low": 20, "high": 40, "mid": 40})
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    folded = text.split("<summary>Box AP of each class")[1].split("</details>")[0]
    assert "![Bars of each class](plots/classes-s1-1.png)" in folded
    path = tmp_path / "plots" / "classes-s1-1.png"
    for colour, values in ((PALETTE[0], [80, 30, 10]), (PALETTE[1], [40, 40, 20])):
        heights = np.array(bars(path, colour))
        assert heights / heights[0] == pytest.approx(np.array(values) / values[0], abs=0.02)


def test_of_many_backbones_the_best_are_drawn_and_told_apart(tmp_path: Path) -> None:
    for i in range(9):
        save(tmp_path, f"b{i}", {"c0": 10.0 + 7 * i, "c1": 20.0})
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    assert "the best 7 of 9 backbones" in text
    path = tmp_path / "plots" / "classes-s1-1.png"
    assert all(len(bars(path, colour)) == 2 for colour in PALETTE[:6])
    entries = collect([tmp_path]).entries
    cells = Metrics(entries).parts("box_AP_class", (("rule", "11-point"),))
    rows = [(b.row, b.label) for b in backbones_of(entries, [])]
    assert [label for _, label in drawn(cells, rows)] == [f"b{i}" for i in range(2, 9)]


@pytest.mark.parametrize(("classes", "shown"), [(1, False), (2, True), (80, True), (81, False)])
def test_from_two_classes_to_coco(tmp_path: Path, classes: int, shown: bool) -> None:
    save(tmp_path, "a", {f"class number {i}": i % 97 for i in range(classes)})
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    assert ("plots/classes-s1-1.png" in text) == shown
    assert (tmp_path / "plots" / "classes-s1-1.png").is_file() == shown
    if classes == 80:
        with Image.open(tmp_path / "plots" / "classes-s1-1.png") as image:
            assert image.height > 1000  # four panels of twenty


def with_epochs(folder: Path, name: str, method: str, epochs: int | None, arch: str = "r") -> None:
    rng = np.random.default_rng(len(name))
    for trial in range(2):
        for benchmark, make in (("in1k-knn", made.knn), ("voc12aug-fcn-20k", made.segment)):
            rec = made.record(benchmark, name, make(rng), trial=trial)
            rec.backbone.update(method=method, epochs=epochs, arch=arch)
            made.save(folder, rec)


def test_epochs_against_transfer_are_those_of_pandas(tmp_path: Path) -> None:
    with_epochs(tmp_path, "a", "SimSiam", 100)
    with_epochs(tmp_path, "abc", "SimSiam", 400)
    with_epochs(tmp_path, "ab", "SimSiam", 200)
    with_epochs(tmp_path, "other-arch", "SimSiam", 800, arch="s")
    with_epochs(tmp_path, "unsaid", "SimSiam", None)
    with_epochs(tmp_path, "moco", "MoCo", 200)
    entries = collect([tmp_path]).entries
    sections = [(s, layout(s.verb, Metrics(s.entries))) for s in sections_of(entries)]
    columns = headlines(sections, States([]))
    panels = dict(epoch_panels(columns, backbones_of(entries, [])))
    frame = long_frame(tmp_path)
    assert len(panels) == 2
    for title, metric in {"top-1": 'top1{"T": 0.07, "k": 20}', "mIoU": "mIoU{}"}.items():
        ((_, lines),) = [(t, lines) for t, lines in panels.items() if title in t]
        assert set(lines) == {"SimSiam, r"}
        of = frame[frame.metric == metric].groupby("backbone").value.agg(["mean", "std"])
        found = pd.DataFrame(lines["SimSiam, r"], columns=["epochs", "mean", "std"])
        assert list(found.epochs) == [100, 200, 400]
        np.testing.assert_allclose(found[["mean", "std"]], of.loc[["a", "ab", "abc"]], rtol=1e-9)
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    assert "(plots/epochs.png)" in text
    assert (tmp_path / "plots" / "epochs.png").is_file()


def test_no_plot_of_epochs_without_two_to_compare(tmp_path: Path) -> None:
    with_epochs(tmp_path, "a", "SimSiam", 100)
    with_epochs(tmp_path, "b", "SimSiam", 100)
    with_epochs(tmp_path, "c", "MoCo", 200)
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    assert "epochs.png" not in text
    assert not (tmp_path / "plots" / "epochs.png").exists()
