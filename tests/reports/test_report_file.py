"""What stands in report.md beside the numbers: published rows, plots, provenance; and bad input."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import made_records as made
import numpy as np
import pytest
from PIL import Image
from test_report_numbers import number, tables

from reports import VERBS
from reports.collect import read_monitor
from reports.published import DATASETS, published_rows
from reports.report import write_report
from siambench.cli import run_verb
from siambench.data.images import OFFICIAL_COUNTS
from siambench.record import Metric, read_record, write_record


def report(*folders: Path, out: Path | None = None, **options: list[str]) -> str:
    return write_report(list(folders), out or folders[0] / "report.md", **options).read_text()


def published_csv() -> list[dict[str, str]]:
    text = resources.files("reports").joinpath("published_results.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_published_rows_stand_beside_the_real_data_set_only(tmp_path: Path) -> None:
    made.fill(tmp_path / "real", official=True)
    made.fill(tmp_path / "digits")
    methods = {row["method"] for row in published_csv()} - {"SimSiam"}
    for name, shown in {"real": True, "digits": False}.items():
        text = report(tmp_path / name)
        rows = {who for t in tables(text).values() for who in t.index}
        found = {m for m in methods if any(who.startswith(f"*{m}* <sup>") for who in rows)}
        assert ({"BYOL", "MoCo v2", "SwAV", "scratch", "SimSiam, optimal"} <= found) == shown
        assert bool(found) == shown
        assert text.count("is not the data set of the published table") == (0 if shown else 6)


def test_published_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    made.fill(tmp_path, official=True, benchmarks=("coco-mrcnn-c4-1x",))
    text = report(tmp_path)
    (table,) = [t for (_, c), t in tables(text).items() if "101-point" in c]
    lines = [r for r in published_csv() if r["benchmark"] == "coco-mrcnn-c4-1x"]
    published = table[table.index.str.startswith("*")]
    assert len(published) == len({r["method"] for r in lines})
    for line in lines:
        row = table.loc[f"*{line['method']}* <sup>a</sup>"]
        assert row[line["metric"].replace("_", " ")] == line["value"]
        assert row["epochs"] == (line["pretrain_epochs"] or "–")
    assert "**" not in "".join(published.to_numpy().ravel())
    assert "<sup>a</sup> published: Chen & He 2021 (arXiv 2011.10566) Table 5" in text


def test_anomalous_published_rows_carry_their_flag(tmp_path: Path) -> None:
    made.fill(tmp_path, official=True, benchmarks=("voc12aug-fcn-20k",))
    text = report(tmp_path)
    assert re.search(r"\*SimSiam\* <sup>a</sup> *\| *100 \| *46.11 ⚠", text)
    assert "⚠ anomalous: far below every other method" in text
    assert text.count("⚠") == 3  # 100 and 200 epochs, and the footnote


def test_another_engine_or_protocol_is_a_table_of_its_own(tmp_path: Path) -> None:
    made.fill(tmp_path, official=True, benchmarks=("voc07-svm",))
    found = {c: t for (h, c), t in tables(report(tmp_path)).items() if h.startswith("Linear SVM")}
    (same,) = [t for c, t in found.items() if c.startswith("Linear SVM")]
    (other,) = [t for c, t in found.items() if c.startswith("Published with another")]
    assert not any("VICReg" in who for who in same.index)
    assert any("VICReg" in who for who in other.index)
    assert all(who.startswith("*") for who in other.index)


def test_temperatures_are_not_mixed_with_published_ones(tmp_path: Path) -> None:
    made.fill(tmp_path, official=True, benchmarks=("in1k-knn",))
    found = {c: t for (h, c), t in tables(report(tmp_path)).items() if h.startswith("kNN")}
    counts = {c: t.index.str.startswith("*").sum() for c, t in found.items()}
    assert counts.pop("Weighted kNN with T = 0.07, top-1 %:") == 9
    assert len(counts) == 5
    assert set(counts.values()) == {0}


def test_every_published_benchmark_has_its_data_set() -> None:
    names = {row["benchmark"] for row in published_csv()} - {"voc0712-frcnn-c4-24k-mmdet"}
    assert names == set(DATASETS)
    assert set(DATASETS.values()) <= set(OFFICIAL_COUNTS)


def test_published_rows_hold_every_number_but_ablations() -> None:
    for name in DATASETS:
        lines = [r for r in published_csv() if r["benchmark"] == name]
        lines = [r for r in lines if not r["note"].startswith("ablation")]
        rows = published_rows((name,))
        assert sum(len(row.values) for row in rows) == len(lines)
        assert sorted(v for row in rows for v in row.values.values()) == sorted(
            r["value"] for r in lines
        )


def test_two_protocols_of_one_preset_are_two_sections(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for epochs in (90, 28):
        for name in ("a", "b"):
            rec = made.record("in1k-linear-lars-90e", name, made.linear(rng), epochs=epochs)
            made.save(tmp_path, rec)
    text = report(tmp_path)
    headings = [h for h in re.findall(r"^## (.*)$", text, re.M) if h.startswith("Linear probe")]
    assert len(headings) == len(set(headings)) == 2
    settings = [t for t in tables(text).values() if t.index.name == "setting"]
    assert [set(t.index) for t in settings] == [{"epochs"}] * 2
    assert sorted(settings[0].loc["epochs"]) == ["28", "90"]
    (first,) = [t for (h, _), t in tables(text).items() if h.startswith("Which")]
    assert sum("in1k-linear-lars-90e" in c for c in first.columns) == 2


def test_engines_and_data_sets_are_not_mixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for data, engine in (("x", "torchvision"), ("x", "detectron2"), ("y", "torchvision")):
        rec = made.record("voc07-frcnn-c4", "a", made.voc(rng), dataset=data, engine=engine)
        made.save(tmp_path, rec)
    headings = re.findall(r"^## (Detection.*)$", report(tmp_path), re.M)
    assert len(headings) == len(set(headings)) == 3


def test_files_of_one_name_are_two_rows(tmp_path: Path) -> None:
    for sha, value in (("1" * 64, 10.0), ("2" * 64, 90.0)):
        metrics = [Metric("mIoU", value, split="val")]
        made.save(tmp_path, made.record("voc12aug-fcn-20k", "net", metrics, sha256=sha))
    (table,) = [t for (h, _), t in tables(report(tmp_path)).items() if h.startswith("Segm")]
    assert {who: number(c)[0] for who, c in table["mIoU"].items()} == {
        "net (11111111)": 10.0,
        "net (22222222)": 90.0,
    }


def test_edited_and_damaged_records_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.fill(tmp_path, benchmarks=("in1k-knn",))
    edited, cut, _ = sorted(tmp_path.glob("records/*.json"))
    body = json.loads(edited.read_text())
    body["metrics"][0]["value"] = 99.9
    edited.write_text(json.dumps(body))
    cut.write_bytes(cut.read_bytes()[:100])
    text = report(tmp_path)
    errors = capsys.readouterr().err
    assert "99.9" not in text
    left_out = text.split("### Left out")[1]
    for path, reason in ((edited, "was changed after it was written"), (cut, "is not a record")):
        assert f"`records/{path.name}`: {reason}" in left_out
        assert path.name in errors
        assert reason in errors
    assert str(tmp_path) not in text
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which")]
    assert list(table.index) == ["supervised"]


def test_an_evaluation_counts_once_in_several_folders(tmp_path: Path) -> None:
    made.fill(tmp_path / "a", trials=2, benchmarks=("in1k-knn",))
    made.fill(tmp_path / "b", backbones=("other",), trials=2, benchmarks=("in1k-knn",))
    shutil.copy(next(tmp_path.glob("a/records/*-random-*.json")), tmp_path / "b" / "records")
    text = report(tmp_path / "a", tmp_path / "b", tmp_path / "a", out=tmp_path / "both.md")
    (table,) = [t for (_, c), t in tables(text).items() if "kNN with T = 0.07" in c]
    assert set(table.index) == {"simsiam", "supervised", "random", "other"}
    assert "over n = 2 trials" in text
    assert text.count("the same evaluation as") == 1
    for target in re.findall(r"^\[r\d+\]: (\S+)$", text, re.M):
        assert (tmp_path / target).is_file()
    assert "../" not in text


def test_the_same_records_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    made.fill(tmp_path / "one", trials=2)
    made.monitor(tmp_path / "one", "simsiam")
    shutil.copytree(tmp_path / "one", tmp_path / "moved" / "here")
    first, second = tmp_path / "one", tmp_path / "moved" / "here"
    assert report(first) == report(second)
    for plot in first.glob("plots/*.png"):
        assert plot.read_bytes() == (second / "plots" / plot.name).read_bytes()
    before = (first / "report.md").read_bytes()
    report(first)
    assert (first / "report.md").read_bytes() == before


def test_plots_are_embedded_and_show_every_backbone(tmp_path: Path) -> None:
    made.fill(tmp_path, trials=2)
    made.monitor(tmp_path, "simsiam")
    made.monitor(tmp_path, "supervised", labels=True)
    text = report(tmp_path, order=["simsiam", "supervised", "random"])
    plots = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    classes = [plot for plot in plots if "classes-" in plot]
    assert len(classes) == 4  # SVM, VOC, boxes and masks of COCO
    assert len(plots) == 2 + len(classes)
    for plot in plots:
        with Image.open(tmp_path / plot) as image:
            image.verify()
        with Image.open(tmp_path / plot) as image:
            assert min(image.size) >= 400
            colours = {c for _, c in image.convert("RGB").getcolors(2**24)}
        expected = [(0, 114, 178), (213, 94, 0)]  # simsiam, supervised
        assert colours >= set(expected if "pretrain" in plot else [*expected, (0, 158, 115)])


def test_training_curves_survive_a_killed_and_resumed_run(tmp_path: Path) -> None:
    path = made.monitor(tmp_path, "simsiam", epochs=4)
    lines = path.read_text().splitlines()
    again = json.dumps({**json.loads(lines[2]), "loss": -0.5})
    path.write_text("\n".join([*lines[:3], lines[3][:20], again, lines[3]]) + "\n" + lines[0][:9])
    rows = read_monitor(path)
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4]
    assert rows[2]["loss"] == -0.5
    # training curves alone make a report too
    (table,) = [t for t in tables(report(tmp_path)).values() if t.index.name == "run"]
    last = json.loads(lines[3])
    assert float(table.loc["simsiam", "std·√d"]) == pytest.approx(
        last["std"] * np.sqrt(512), abs=0.00501
    )


def test_names_cannot_break_the_tables(tmp_path: Path) -> None:
    for i, name in enumerate(["a|b*[c](http://x)<b>`", "plain"]):
        rec = made.record("in1k-knn", name, made.knn(np.random.default_rng(i)))
        write_record(tmp_path / "records" / f"with space {i}.json", rec)
    text = report(tmp_path)
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which")]
    assert table.index[0] == r"a\|b\*\[c\](http://x)\<b\>\`"
    assert "[r1]: records/with%20space%200.json" in text


def test_how_this_was_made(tmp_path: Path) -> None:
    records = made.fill(tmp_path, trials=2, benchmarks=("in1k-knn", "voc07-svm"))
    closing = report(tmp_path).split("## How this was made")[1]
    hours = sum(r.seconds for r in records) / 3600
    assert f"{len(records)} records, {hours:.2f} hours" in closing
    assert "siambench 0.1.0, python 3.11.9, torch 2.15.0 (12 records)" in closing
    assert "cpu AMD EPYC, threads 2 (12 records)" in closing
    for record in records:
        assert record.backbone["sha256"][:16] in closing
        assert record.dataset.fingerprint[:16] in closing
    assert "train 1,300, val 497" in closing


def test_protocol_is_printed_in_full(tmp_path: Path) -> None:
    import yaml

    (record,) = made.fill(tmp_path, backbones=("a",), benchmarks=("in1k-knn",))
    dumped = report(tmp_path).split("~~~~~~yaml")[1].split("~~~~~~")[0]
    assert yaml.safe_load(dumped) == record.protocol


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.fill(tmp_path / "a", benchmarks=("in1k-knn",))
    made.fill(tmp_path / "b", benchmarks=("voc07-svm",))
    a, b, out = str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c" / "both.md")
    assert run_verb(VERBS["report"], [a]) == 0
    assert (tmp_path / "a" / "report.md").is_file()
    assert run_verb(VERBS["report"], ["--out", out, a, b, "--order", "[random]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "report": out,
        "html": out.replace(".md", ".html"),
    }
    text = Path(out).read_text()
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which")]
    assert table.index[0] == "random"
    for target in re.findall(r"^\[r\d+\]: (\S+)$", text, re.M):
        assert target.startswith("../")
        assert (tmp_path / "c" / target).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "run folder: nowhere does not exist"),
        (["file"], "run folder: file is not a folder"),
        (["empty"], "run folder: empty has no records/*.json"),
        (["good", "empty"], "run folder: empty has no records/*.json"),
        ([], "dirs"),
    ],
)
def test_wrong_folders_are_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    made.fill(Path("good"), backbones=("a",), benchmarks=("in1k-knn",))
    assert run_verb(VERBS["report"], arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("good/report.md").exists()


def test_a_name_to_order_that_nothing_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.fill(tmp_path, benchmarks=("in1k-knn",))
    assert run_verb(VERBS["report"], [str(tmp_path), "--order", "supervise"]) == 2
    assert "'supervise' has neither a record nor a job; is 'supervised' meant?" in (
        capsys.readouterr().err
    )
    assert run_verb(VERBS["report"], [str(tmp_path), "--compare", "random"]) == 2
    assert "is not a list of 2 texts" in capsys.readouterr().err


def test_odd_files_are_left_out_or_shown_and_end_nothing(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("a",), benchmarks=("in1k-knn",))
    (path,) = (tmp_path / "records").iterdir()
    shutil.copy(path, os.fsencode(tmp_path / "records") + b"/a\xff.json")
    (tmp_path / "records/deep.json").write_text("[" * 100_000)
    (tmp_path / "records/odd\u202e\x1b.json").write_text("{")
    text = report(tmp_path)
    assert "deep.json" in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "top-1" in text


def test_a_run_whose_jobs_all_failed_has_a_report_that_says_so(tmp_path: Path) -> None:
    assert "No finished evaluation yet." in report(tmp_path / "run", order=["a", "b"])


def test_a_report_needs_no_torch() -> None:
    code = "import reports.report, reports.plots, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_published_rows_beside_a_changed_protocol(tmp_path: Path) -> None:
    made.fill(tmp_path, official=True, benchmarks=("in1k-knn",))
    for path in sorted((tmp_path / "records").glob("*.json")):
        write_record(path, replace(read_record(path), overrides=["crop"]))
    text = report(tmp_path)
    assert "Settings that are not the preset's (`crop`): no published rows here." in text
    assert "BYOL" not in text
