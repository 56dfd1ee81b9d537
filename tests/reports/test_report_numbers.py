"""The numbers of report.md, read back and compared with pandas on the records' JSON."""

import json
import re
from pathlib import Path

import made_records as made
import numpy as np
import pandas as pd
import pytest

from reports.report import write_report

ORDER = ["simsiam", "supervised", "random"]


def cells(line: str) -> list[str]:
    return [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def tables(text: str) -> dict[tuple[str, str], pd.DataFrame]:
    """(heading, caption) to table of cell texts, indexed by its first column."""
    found, heading, caption, lines = {}, "", "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            header, body = cells(lines[0]), [cells(x) for x in lines[2:]]
            found[heading, caption] = pd.DataFrame(body, columns=header).set_index(header[0])
            lines = []
        if line.startswith("#"):
            heading, caption = line.lstrip("# "), ""
        elif line and not line.startswith("|"):
            caption = line
    return found


def number(text: str) -> tuple[float, float | None, bool]:
    """Mean, std (None for one trial) and whether it is bold."""
    bold = text.startswith("**")
    plain = re.sub(r"<sup>.*</sup>", "", text).replace("**", "")
    plain = re.sub(r"\[([^]]*)\]\[r\d+\]", r"\1", plain)
    mean, *std = plain.split("±")
    return float(mean), float(std[0]) if std else None, bold


def long_frame(folder: Path) -> pd.DataFrame:
    """Every metric of every record, from the JSON itself."""
    rows = []
    for path in sorted(folder.glob("records/*.json")):
        record = json.loads(path.read_text())
        for m in record["metrics"]:
            rows.append(
                {
                    "benchmark": record["benchmark"],
                    "backbone": record["backbone"]["name"],
                    "trial": record["trial"],
                    "metric": m["name"] + json.dumps(m["params"], sort_keys=True),
                    "value": m["value"],
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trials")
    made.fill(folder, trials=3)
    return folder, write_report([folder], folder / "report.md", ORDER).read_text()


COLUMNS = [
    ("Linear probe", "on avgpool", "top-1", 1, 'top1{"layer": "avgpool"}'),
    ("Linear probe", "on avgpool", "top-5", 1, 'top5{"layer": "avgpool"}'),
    ("kNN", "kNN with T = 0.07", "k=20", 1, 'top1{"T": 0.07, "k": 20}'),
    ("kNN", "kNN with T = 0.2", "k=200", 1, 'top1{"T": 0.2, "k": 200}'),
    ("Linear SVM", "Low-shot costs", "full SVM", 2, 'mAP{"layer": "avgpool"}'),
    ("Detection: `voc07", "11-point", "box AP50", 1, 'box_AP50{"rule": "11-point"}'),
    ("Detection: `voc07", "all-points", "box AP75", 1, 'box_AP75{"rule": "all-points"}'),
    ("Detection: `coco", "101-point", "mask AP", 1, 'mask_AP{"rule": "101-point"}'),
    ("Segmentation", "Semantic", "mIoU", 2, "mIoU{}"),
]


@pytest.mark.parametrize(("heading", "caption", "column", "decimals", "metric"), COLUMNS)
def test_mean_std_and_bold_are_those_of_pandas(
    trials: tuple[Path, str], heading: str, caption: str, column: str, decimals: int, metric: str
) -> None:
    folder, text = trials
    (table,) = [t for (h, c), t in tables(text).items() if h.startswith(heading) and caption in c]
    table = table[table.index != ""]  # low-shot has a second line, which test_report_svm.py reads
    frame = long_frame(folder)
    verb_of = {
        "Linear p": "linear",
        "kNN": "knn",
        "Detection: `v": "voc07-f",
        "Detection: `c": "coco",
    }
    (prefix,) = [v for k, v in verb_of.items() if heading.startswith(k)] or [""]
    frame = frame[(frame.metric == metric) & frame.benchmark.str.contains(prefix)]
    expected = frame.groupby("backbone").value.agg(["mean", "std", "count"])
    assert (expected["count"] == 3).all()
    assert list(table.index) == ORDER
    bold = expected["mean"] >= expected["mean"].max() - 0.5
    for backbone in ORDER:
        mean, std, is_bold = number(table.loc[backbone, column])
        assert mean == pytest.approx(expected["mean"][backbone], abs=0.5001 * 10**-decimals)
        assert std == pytest.approx(expected["std"][backbone], abs=0.5001 * 10**-decimals)
        assert is_bold == bold[backbone]


def test_first_table_has_headlines_and_mean_ranks(trials: tuple[Path, str]) -> None:
    folder, text = trials
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which backbone")]
    frame = long_frame(folder)
    of = frame.groupby(["benchmark", "metric", "backbone"]).value.mean()
    lowshot = [f'mAP{{"k": {k}, "layer": "avgpool"}}' for k in made.KS]
    headlines = {
        "top-1 (avgpool)": of["in1k-linear-lars-90e", 'top1{"layer": "avgpool"}'],
        "top-1 (k=20, T=0.07)": of["in1k-knn", 'top1{"T": 0.07, "k": 20}'],
        "full SVM": of["voc07-svm", 'mAP{"layer": "avgpool"}'],
        "low-shot": of["voc07-lowshot"].unstack(0)[lowshot].mean(axis=1),
        "box AP50 (11-point)": of["voc07-frcnn-c4", 'box_AP50{"rule": "11-point"}'],
        "box AP (11-point)": of["voc07-frcnn-c4", 'box_AP{"rule": "11-point"}'],
        "box AP (101-point)": of["coco-mrcnn-c4-1x", 'box_AP{"rule": "101-point"}'],
        "mask AP (101-point)": of["coco-mrcnn-c4-1x", 'mask_AP{"rule": "101-point"}'],
        "mIoU": of["voc12aug-fcn-20k", "mIoU{}"],
    }
    assert len(table.columns) == len(headlines) + 3  # method, epochs, mean rank
    for header, expected in headlines.items():
        (column,) = [c for c in table.columns if f"<br>{header}" in c]
        for backbone in ORDER:
            mean, _, bold = number(table.loc[backbone, column])
            assert mean == pytest.approx(expected[backbone], abs=0.05001)
            assert bold == (expected[backbone] >= expected.max() - 0.5)
    ranks = pd.DataFrame(headlines).rank(ascending=False).mean(axis=1)
    for backbone in ORDER:
        mean, _, bold = number(table.loc[backbone, "mean rank"])
        assert mean == pytest.approx(ranks[backbone], abs=0.00501)
        assert bold == (ranks[backbone] == ranks.min())
    assert f"Best mean rank: **{ranks.idxmin()}**" in text


def test_std_of_lowshot_mean_is_over_trials(trials: tuple[Path, str]) -> None:
    folder, text = trials
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which backbone")]
    (column,) = [c for c in table.columns if "low-shot" in c]
    frame = long_frame(folder)
    frame = frame[frame.metric.str.startswith('mAP{"k"')]
    per_trial = frame.groupby(["backbone", "trial"]).value.mean()
    for backbone in ORDER:
        expected = np.std(per_trial[backbone].to_numpy(), ddof=1)
        assert number(table.loc[backbone, column])[1] == pytest.approx(expected, abs=0.05001)


def test_every_number_leads_to_the_records_it_is_made_of(trials: tuple[Path, str]) -> None:
    folder, text = trials
    targets = dict(re.findall(r"^\[(r\d+)\]: (\S+)$", text, re.M))
    seen = set()
    for (heading, caption), table in tables(text).items():
        if not heading.startswith(("Linear", "kNN", "Det", "Seg", "Which")):
            continue
        # an interval's number is in another table
        if "<summary>" in caption and ("interval" in caption or "worst" in caption):
            continue
        beside = ("epochs", "method", "best layer", "low-shot cost", "mean rank", "95 %")
        backbone = ""
        for name, row in table.iterrows():
            backbone = name or backbone  # a second line does not repeat it
            for column, cell in row.items():
                if column in beside or (not name and column == "full SVM"):
                    continue
                links = re.findall(r"\[(\d)\]\[(r\d+)\]", cell)
                assert [n for n, _ in links] == ["1", "2", "3"]
                for n, ref in links:
                    record = json.loads((folder / targets[ref]).read_text())
                    assert record["backbone"]["name"] == backbone
                    assert record["trial"] == int(n) - 1
                    in_heading = f"`{record['benchmark']}`" in heading
                    assert in_heading or f"[{record['benchmark']}](#" in column
                    seen.add(ref)
    assert seen == set(targets)
    assert len(targets) == len(list(folder.glob("records/*.json")))


def test_single_trials_have_no_spread_and_link_the_number(tmp_path: Path) -> None:
    (record,) = made.fill(tmp_path, backbones=("random",), benchmarks=("voc12aug-fcn-20k",))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    (table,) = [t for (_, c), t in tables(text).items() if c.startswith("Semantic")]
    # one backbone: nothing to compare, so nothing is bold
    assert table.loc["random", "mIoU"] == f"[{record.metric('mIoU'):.2f}][r1]"
    assert "One trial each." in text
    assert "±" not in text


def test_best_is_within_half_a_point_inclusive(tmp_path: Path) -> None:
    from siambench.record import Metric

    for name, value in {"a": 45.5, "b": 45.0, "c": 44.99}.items():
        metrics = [Metric("mIoU", value, split="val")]
        made.save(tmp_path, made.record("voc12aug-fcn-20k", name, metrics))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Segmentation")]
    assert [number(c)[2] for c in table["mIoU"]] == [True, True, False]


def test_missing_cells_and_order(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("b", "a", "z"), benchmarks=("in1k-knn", "voc07-svm"))
    next(tmp_path.glob("records/voc07-svm-a-*.json")).unlink()
    order = ["z", "failed", "b"]
    text = write_report([tmp_path], tmp_path / "report.md", order).read_text()
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which backbone")]
    assert list(table.index) == ["z", "failed", "b", "a"]
    (svm,) = [c for c in table.columns if "voc07-svm" in c]
    assert table.loc["a", svm] == "–"
    assert set(table.loc["failed"]) == {"–"}
    assert table.loc["a", "mean rank"].endswith("(1 of 2)")
    (table,) = [t for (_, c), t in tables(text).items() if c == "Linear SVM, mAP %:"]
    assert list(table.index) == ["z", "b"]


def test_feature_table_of_the_multi_head_probe(tmp_path: Path) -> None:
    layers = tuple(f"feature{i}" for i in range(1, 6))
    metrics = made.linear(np.random.default_rng(0), ("avgpool", *layers))
    rec = made.record("in1k-linear-mhead-90e", "a", metrics, verb="linear", dataset="imagenet-1k")
    made.save(tmp_path, rec)
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    found = {c: t for (h, c), t in tables(text).items() if h.startswith("Linear probe")}
    (table,) = [t for c, t in found.items() if "output, top-1" in c]
    assert list(table.columns) == ["epochs", *layers, "avgpool"]
    expected = next(m.value for m in metrics if m.params == {"layer": "feature3"})
    assert number(table.loc["a", "feature3"])[0] == pytest.approx(expected, abs=0.00501)
    (page,) = [t for who, t in table.iterrows() if "BYOL" in who]
    assert page["feature4"] == "63.1"  # mmselfsup's benchmark page


def test_a_benchmark_without_a_layout_is_shown_whole(tmp_path: Path) -> None:
    from siambench.record import Metric

    metrics = [Metric("recall", 12.5, params={"at": 1}), Metric("rate", 1234.0, unit="images/s")]
    made.save(tmp_path, made.record("my-retrieval", "a", metrics, verb="retrieve"))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    shown = [t for (h, _), t in tables(text).items() if h.startswith("retrieve: `my-retrieval`")]
    assert [number(t.iloc[0, -1])[0] for t in shown] == [12.5, 1234.0]
    assert "recall (at=1)" in text
