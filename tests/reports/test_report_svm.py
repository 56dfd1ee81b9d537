"""The sections of linear SVMs: both low-shot lines, best layers, top-1, left-out classes, costs."""

import re
from pathlib import Path

import made_records as made
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report_numbers import long_frame, number, tables

from reports.report import write_report
from reports.tables import MOST_PAIRS
from siambench.record import Metric, Record

FULL, LOW = "voc07-svm", "voc07-lowshot"
LAYERS = ("feature4", "feature5", "avgpool")
ON_TEST, HONEST = "best on test", "honest"


def report(folder: Path) -> str:
    return write_report([folder], folder / "report.md").read_text()


def table(text: str, caption: str, heading: str = "Linear SVM") -> pd.DataFrame:
    (found,) = [t for (h, c), t in tables(text).items() if caption in c and heading in h]
    return found


def lines(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """``best on test`` and ``honest`` to their lines; the latter have the name of the line above."""
    filled = found.set_axis(pd.Series(found.index).replace("", None).ffill(), axis=0)
    return dict(iter(filled.groupby("low-shot cost", sort=False)))


def plain(cells: pd.Series) -> list[str]:
    """Without links."""
    text = [re.sub(r" ?<sup>.*</sup>", "", cell) for cell in cells]
    return [re.sub(r"\[([^]]*)\]\[r\d+\]", r"\1", cell).strip("*") for cell in text]


def save(
    folder: Path, benchmark: str, name: str, metrics: list[Metric], **settings: object
) -> Record:
    rec = made.record(benchmark, name, metrics, **settings)
    made.save(folder, rec)
    return rec


def values(metrics: list[Metric], name: str, layer: str) -> dict[int, float]:
    """By k."""
    own = [m for m in metrics if m.name == name and m.params["layer"] == layer]
    return {m.params["k"]: m.value for m in own}


@pytest.mark.parametrize("trials", [1, 3])
def test_both_costs_stand_together_with_the_spread_over_samples(
    tmp_path: Path, trials: int
) -> None:
    made.fill(tmp_path, trials=trials, benchmarks=(FULL, LOW))
    found = lines(table(text := report(tmp_path), "Low-shot costs"))
    assert list(found) == [ON_TEST, HONEST]
    mean = long_frame(tmp_path).groupby(["metric", "backbone"]).value.mean()
    for line, score in ((ON_TEST, "mAP"), (HONEST, "mAP_honest")):
        assert list(found[line].index) == ["random", "simsiam", "supervised"]
        for k in made.KS:
            at = f'{{"k": {k}, "layer": "avgpool"}}'
            expected, spread = mean[f"{score}{at}"], mean[f"{score}_std{at}"]
            for backbone, cell in found[line][f"k={k}"].items():
                of_cell = number(cell)
                assert of_cell[0] == pytest.approx(expected[backbone], abs=0.00501)
                assert of_cell[1] == pytest.approx(spread[backbone], abs=0.00501)
                assert of_cell[2] == (expected[backbone] >= expected.max() - 0.5)
    assert set(found[HONEST]["full SVM"]) == {""}  # its cost is not chosen on test anyway
    assert ("its mean over trials" in text) == (trials > 1)
    worst = table(text, "From the worst to the best sample")
    low, high = (mean[f'mAP_{end}{{"k": 8, "layer": "avgpool"}}'] for end in ("min", "max"))
    ends = [f"{low[b]:.2f}–{high[b]:.2f}" for b in worst.index]
    assert plain(worst["k=8"]) == ends
    assert "Other metrics" not in text


def test_records_of_the_first_version_have_no_honest_spread(tmp_path: Path) -> None:
    for trial in range(2):
        old = [
            m
            for m in made.lowshot(np.random.default_rng(trial))
            if m.name not in ("mAP_honest_std", "cost_honest")
        ]
        save(tmp_path, LOW, "a", old, trial=trial)
    found = lines(table(text := report(tmp_path), "Low-shot costs"))
    assert all("±" not in cell for cell in found[HONEST].iloc[0])
    assert all("±" in cell for cell in found[ON_TEST].filter(like="k=").iloc[0])
    assert list(lines(table(text, "Chosen low-shot costs"))) == [ON_TEST]
    assert "Other metrics" not in text


@pytest.mark.parametrize("solver", ["batched", "liblinear"])
def test_published_rows_stand_beside_the_literatures_line_alone(
    tmp_path: Path, solver: str
) -> None:
    engine = {"batched": "torch", "liblinear": "scikit-learn"}[solver]
    rng = np.random.default_rng(0)
    for benchmark, metrics in ((FULL, made.svm(rng)), (LOW, made.lowshot(rng))):
        rec = made.record(benchmark, "a", metrics, dataset="voc07", solver=solver, engine=engine)
        rec.overrides.extend(["solver"] * (solver == "liblinear"))
        made.save(tmp_path, rec)
    text = report(tmp_path)
    found = table(text, "Low-shot costs")
    published = found[found.index.str.startswith("*")]
    (simclr,) = [row for who, row in published.iterrows() if who.startswith("*SimCLR*")]
    # mmselfsup's benchmark page
    assert simclr[["best layer", "full SVM", "k=1", "k=64"]].tolist() == [
        "feature5",
        "79.98",
        "35.02",
        "75.56",
    ]
    assert set(published["low-shot cost"]) == {ON_TEST}
    ours = found[~found.index.str.startswith("*")]
    assert list(ours["low-shot cost"]) == [ON_TEST, HONEST]
    assert ours["k=1"].str.contains("±").all()
    elsewhere = table(text, "Published with another")
    assert "low-shot cost" not in elsewhere.columns  # its only column is the full SVM's
    assert f"Solver: {solver}" in text
    assert ("shown to agree" in text) == (solver == "batched")


def test_two_solvers_are_two_sections_each_with_its_full_and_its_low_shot(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for solver, engine in (("batched", "torch"), ("liblinear", "scikit-learn")):
        for benchmark, metrics in ((FULL, made.svm(rng)), (LOW, made.lowshot(rng))):
            save(tmp_path, benchmark, "a", metrics, solver=solver, engine=engine)
    text = report(tmp_path)
    engines = re.findall(r"Engine: (\S+)\.", text)
    assert engines == ["scikit-learn", "torch"]
    found = [(h, t) for (h, c), t in tables(text).items() if "Low-shot costs" in c]
    assert len(found) == 2
    for heading, of_solver in found:
        assert f"`{FULL}` and `{LOW}`" in heading
        assert {"full SVM", "k=1"} <= set(of_solver.columns)


@pytest.mark.parametrize("with_full", [True, False])
def test_best_layer_of_each_backbone(tmp_path: Path, with_full: bool) -> None:
    rng = np.random.default_rng(3)
    low, full, best = {}, {}, {}
    for name in ("a", "b", "c", "d"):
        low[name], full[name] = made.lowshot(rng, LAYERS), made.svm(rng, LAYERS)
        score = {
            layer: next(m.value for m in full[name] if m.params == {"layer": layer})
            if with_full
            else np.mean([*values(low[name], "mAP", layer).values()])
            for layer in LAYERS
        }
        best[name] = max(score, key=score.__getitem__)
        save(tmp_path, LOW, name, low[name])
        if with_full:
            save(tmp_path, FULL, name, full[name])
    assert len(set(best.values())) > 1
    text = report(tmp_path)
    assert "The best layer (also of the honest line) is chosen on the test split" in text
    found = lines(table(text, "Low-shot costs"))
    by_layer = lines(table(text, "Low-shot SVM on each layer"))
    for line, score in ((ON_TEST, "mAP"), (HONEST, "mAP_honest")):
        assert list(by_layer[line].columns[2:]) == list(LAYERS)
        for name, of_name in low.items():
            expected = values(of_name, score, best[name])
            cells = [number(found[line].loc[name, f"k={k}"])[0] for k in made.KS]
            assert cells == pytest.approx([expected[k] for k in made.KS], abs=0.00501)
            means = [np.mean([*values(of_name, score, x).values()]) for x in LAYERS]
            shown = [number(by_layer[line].loc[name, x])[0] for x in LAYERS]
            assert shown == pytest.approx(means, abs=0.00501)
    assert found[ON_TEST]["best layer"].to_dict() == best
    if with_full:
        assert list(table(text, "Full SVM on each layer").columns) == ["epochs", *LAYERS]
    assert "Other metrics" not in text


def test_full_svms_alone_have_no_second_line(tmp_path: Path) -> None:
    metrics = made.svm(np.random.default_rng(0), LAYERS, single=True)
    save(tmp_path, FULL, "a", metrics)
    found = table(text := report(tmp_path), "Linear SVM, mAP %")
    assert list(found.columns) == ["epochs", "best layer", "full SVM", "top-1"]
    layer = found.loc["a", "best layer"]
    top1 = next(m.value for m in metrics if m.name == "top1" and m.params == {"layer": layer})
    assert plain(found["top-1"]) == [f"{top1:.2f}"]
    assert "The best layer is chosen on the test split, as in the literature" in text
    assert "Other metrics" not in text


def test_single_labels_have_top1_in_a_table_like_that_of_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low, full = made.lowshot(rng, single=True), made.svm(rng, single=True)
    save(tmp_path, LOW, "a", low)
    save(tmp_path, FULL, "a", full)
    text = report(tmp_path)
    found = lines(table(text, "Linear SVM, top-1 %:"))
    top1 = next(m.value for m in full if m.name == "top1")
    assert plain(found[ON_TEST]["full SVM"]) == [f"{top1:.2f}"]
    for line, score in ((ON_TEST, "top1"), (HONEST, "top1_honest")):
        expected = values(low, score, "avgpool")
        cells = [number(found[line].loc["a", f"k={k}"])[0] for k in made.KS]
        assert cells == pytest.approx([expected[k] for k in made.KS], abs=0.00501)
    assert "Other metrics" not in text


def left_out(count: int) -> list[Metric]:
    whys = [f"has {i} positive and 9 negative images in trainval" for i in range(count)]
    return [
        Metric("left_out", 1, "class", "train", {"class": f"rare{i}", "why": why})
        for i, why in enumerate(whys)
    ]


@pytest.mark.parametrize(("count", "more"), [(2, False), (7, True)])
def test_left_out_classes_are_named_and_are_no_numbers(
    tmp_path: Path, count: int, more: bool
) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        rec = made.record(LOW, name, made.lowshot(rng) + left_out(count), skip_classes=True)
        rec.dataset.counts["classes"] = 18
        made.save(tmp_path, rec)
    text = report(tmp_path)
    assert text.count(f"**Left out: {count} of {18 + count} classes** (`--skip_classes`)") == 1
    assert "rare1 has 1 positive and 9 negative images in trainval" in text
    assert ("; and 2 more. All numbers" in text) == more
    assert "rare6" not in text
    assert not any("rare" in str(t.to_numpy()) + str(t.columns) for t in tables(text).values())
    assert "Other metrics" not in text
    assert len(lines(table(text, "Low-shot costs"))[HONEST]) == 2


@pytest.mark.parametrize("changed", [{}, {"resize": 999}])
def test_a_full_and_a_low_shot_svm_of_other_settings_do_not_share_a_table(
    tmp_path: Path, changed: dict[str, int]
) -> None:
    rng = np.random.default_rng(0)
    save(tmp_path, FULL, "a", made.svm(rng), resize=1)
    save(tmp_path, LOW, "a", made.lowshot(rng), **({"resize": 1} | changed))
    assert len(report(tmp_path).split("\n## Linear SVM")[1:]) == (2 if changed else 1)


def test_different_classes_do_not_share_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save(tmp_path, LOW, "a", made.lowshot(rng) + left_out(1), skip_classes=True)
    save(tmp_path, LOW, "b", made.lowshot(rng))
    save(tmp_path, FULL, "a", made.svm(rng))
    parts = report(tmp_path).split("\n## Linear SVM")[1:]
    assert sorted(("Left out" in part, "full SVM" in part) for part in parts) == [
        (False, True),
        (True, False),
    ]


def test_single_classes_of_the_best_layer_and_their_costs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    metrics = made.svm(rng, LAYERS, classes=5)
    save(tmp_path, FULL, "a", metrics)
    text = report(tmp_path)
    layer = table(text, "Linear SVM, mAP %").loc["a", "best layer"]
    for caption, name, form in (("AP of each class", "AP", ".1f"), ("cost C of", "cost", ".4g")):
        found = table(text, f"<summary>Full SVM, {caption}")
        own = [m for m in metrics if m.name == name and m.params["layer"] == layer]
        assert list(found.columns) == ["epochs", "best layer", *(m.params["class"] for m in own)]
        assert plain(found.iloc[0, 2:]) == [format(m.value, form) for m in own]


def test_more_than_fifty_classes_are_left_to_the_records(tmp_path: Path) -> None:
    save(tmp_path, FULL, "a", made.svm(np.random.default_rng(0), classes=51))
    text = report(tmp_path)
    assert "AP and cost of each class: 51 are too many for a table" in text
    assert not any("each class" in c and "<summary>" in c for _, c in tables(text))


def test_chosen_costs_are_listed_not_averaged(tmp_path: Path) -> None:
    expected: set[float] = set()
    for trial, cost in enumerate((10.0, 0.001)):
        metrics = made.lowshot(np.random.default_rng(trial))
        at = {"k": 2, "layer": "avgpool"}
        kept = [m for m in metrics if (m.name, m.params) != ("cost", at)]
        save(tmp_path, LOW, "a", [*kept, Metric("cost", cost, "C", params=at)], trial=trial)
        of_k = [m for m in metrics if m.name == "cost_honest" and m.params["k"] == 2]
        expected |= {m.value for m in of_k}
    found = lines(table(report(tmp_path), "<summary>Chosen low-shot costs"))
    assert plain(found[ON_TEST]["k=2"]) == ["0.001, 10"]
    assert plain(found[HONEST]["k=2"]) == [", ".join(f"{c:g}" for c in sorted(expected))]
    (cell,) = found[HONEST]["k=2"]
    assert len(re.findall(r"\[r\d+\]", cell)) == 2  # a link per record, not per sample


@pytest.mark.parametrize("count", [1, MOST_PAIRS, MOST_PAIRS + 1])
def test_honest_curves_are_drawn_where_they_can_be_followed(tmp_path: Path, count: int) -> None:
    for with_honest in (True, False):
        folder = tmp_path / str(with_honest)
        for i in range(count):
            metrics = made.lowshot(np.random.default_rng(i))
            kept = [m for m in metrics if with_honest or "honest" not in m.name]
            save(folder, LOW, f"net{i}", kept)
    shown = count <= MOST_PAIRS
    text = report(tmp_path / "True")
    assert ("dashed and thin" in text) == shown
    assert "dashed" not in report(tmp_path / "False")
    both, one = (
        np.asarray(Image.open(tmp_path / str(x) / "plots" / "lowshot-s1.png").convert("RGB"))
        for x in (True, False)
    )
    assert (both.shape != one.shape or (both != one).any()) == shown
