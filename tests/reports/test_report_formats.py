"""Which files a report is, and report.csv read back with pandas and the csv module."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import made_records as made
import numpy as np
import pandas as pd
import pytest

from reports import VERBS
from reports.report import write_report
from siambench.cli import run_verb
from siambench.record import write_record

COLUMNS = [
    *("backbone", "method", "epochs", "arch", "benchmark", "verb", "dataset", "engine", "seed"),
    *("trial", "metric", "value", "unit", "split", "params", "overrides", "record"),
    *("protocol_hash", "backbone_sha256", "dataset_fingerprint"),
]


def test_every_number_of_every_record_is_a_row(tmp_path: Path) -> None:
    made.fill(tmp_path, trials=2)
    write_report([tmp_path], tmp_path / "report.md", formats=("csv",))
    with open(tmp_path / "report.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == COLUMNS
    expected = []
    for path in sorted(tmp_path.glob("records/*.json")):
        r = json.loads(path.read_text())
        b = r["backbone"]
        for m in r["metrics"]:
            row = [f"records/{path.name}", b["name"], b["method"], str(b["epochs"]), b["sha256"]]
            row += [r["benchmark"], r["verb"], r["seed"], r["trial"], r["protocol_hash"]]
            row += [m["name"], m["value"], m["unit"], m["split"], m["params"]]
            expected.append(row)
    found = []
    for r in rows:
        row = [r["record"], r["backbone"], r["method"], r["epochs"], r["backbone_sha256"]]
        row += [r["benchmark"], r["verb"], int(r["seed"]), int(r["trial"]), r["protocol_hash"]]
        row += [r["metric"], float(r["value"]), r["unit"], r["split"], json.loads(r["params"])]
        found.append(row)
    assert found == expected  # to the last digit


def test_pandas_reads_it_with_odd_names(tmp_path: Path) -> None:
    name = 'a,"b"\nc|<d>'
    rec = made.record("in1k-knn", name, made.knn(np.random.default_rng(0)))
    write_record(tmp_path / "records" / "x.json", rec)
    write_report([tmp_path], tmp_path / "report.md", formats=("csv",))
    frame = pd.read_csv(tmp_path / "report.csv")
    assert set(frame.backbone) == {name}
    assert len(frame) == len(rec.metrics)
    of = frame[frame.params.map(json.loads).map(lambda p: p == {"k": 20, "T": 0.07})]
    assert of[of.metric == "top1"].value.item() == rec.metric("top1", k=20, T=0.07)
    assert frame.value.dtype == float


def test_csv_alone_draws_nothing(tmp_path: Path) -> None:
    made.fill(tmp_path, benchmarks=("voc07-lowshot",))
    code = (
        "import sys; from pathlib import Path; from reports.report import write_report;"
        f"folder = Path({str(tmp_path)!r});"
        "write_report([folder], folder / 'report.md', formats=('csv',));"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["records", "report.csv"]


@pytest.mark.parametrize(
    ("formats", "out", "files"),
    [
        ([], [], {"report.md", "report.html"}),
        (["--format", "html"], [], {"report.html"}),
        (["--format", "md,csv"], ["--out", "x.md"], {"x.md", "x.csv"}),
        (["--format", "csv,html,csv"], ["--out", "x.y"], {"x.y.csv", "x.y.html"}),
    ],
)
def test_each_format_is_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    formats: list[str],
    out: list[str],
    files: set[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    made.fill(Path(), backbones=("a",), benchmarks=("in1k-knn",))
    assert run_verb(VERBS["report"], [".", *formats, *out]) == 0
    assert {p.name for p in Path().iterdir() if p.is_file()} == files


@pytest.mark.parametrize("wrong", ["pdf", "md,doc", "MD", ""])
def test_an_unknown_format_names_the_choices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    made.fill(tmp_path, backbones=("a",), benchmarks=("in1k-knn",))
    assert run_verb(VERBS["report"], [str(tmp_path), f"--format={wrong}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "md, html, csv, latex" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "report.md").exists()
