"""Empty cells that say why, rows of backbones that have no record yet, and the gap to supervised."""

import json
import re
from pathlib import Path

import made_records as made
import pytest
from test_report_numbers import long_frame, number, tables

from reports import VERBS
from reports.report import write_report
from siambench.cli import run_verb
from siambench.files import digest_of
from siambench.jobs import state_path


def job(
    folder: Path, verb: str, benchmark: str, backbone: str, state: str, reason: str = ""
) -> None:
    name = " ".join(filter(None, (verb, benchmark, backbone)))
    body = {"name": name, "state": state, "verb": verb, "benchmark": benchmark}
    body |= {"backbone": backbone, "reason": reason, "retry": f"siambench {verb} --config x.yaml"}
    path = state_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(body))
    if state == "running":  # and heard of
        path.with_suffix(".live").write_text("1 of 7")


def first_table(folder: Path) -> tuple[str, dict[str, dict[str, str]]]:
    text = write_report([folder], folder / "report.md", formats=("md",)).read_text()
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which backbone")]
    short = {c: re.sub(r"\W*([\w-]+).*", r"\1", c) for c in table.columns}
    return text, table.rename(columns=short).T.to_dict()


def test_cells_say_how_their_jobs_stand(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("a",), benchmarks=("in1k-knn", "voc07-svm"))
    made.fill(tmp_path, backbones=("b",), benchmarks=("in1k-knn",))
    made.fill(tmp_path, backbones=("c",), benchmarks=("voc07-svm",))
    made.fill(tmp_path, backbones=("unknown",), benchmarks=("voc07-svm",))
    job(tmp_path, "knn", "in1k-knn", "a", "done")
    job(tmp_path, "knn", "in1k-knn", "b", "done")
    job(tmp_path, "svm", "voc07-svm", "b", "failed", "no <space> left|here")
    job(tmp_path, "knn", "in1k-knn", "c", "running")
    job(tmp_path, "knn", "in1k-knn", "new", "waiting")
    job(tmp_path, "segment", "voc12aug-fcn-20k", "a", "interrupted")
    text, cells = first_table(tmp_path)
    assert list(cells) == ["a", "b", "c", "new", "unknown"]
    assert number(cells["a"]["in1k-knn"])[0] > 0
    marks = dict(re.findall(r"^<sup>(\d)</sup> (\S+ \S+ \S+) ", text, re.M))
    failed, interrupted = (
        next(n for n, name in marks.items() if name == wanted)
        for wanted in ("svm voc07-svm b", "segment voc12aug-fcn-20k a")
    )
    assert cells["b"]["voc07-svm"] == f"failed <sup>{failed}</sup>"
    assert cells["a"]["voc12aug-fcn-20k"] == f"interrupted <sup>{interrupted}</sup>"
    assert cells["c"]["in1k-knn"] == "running"
    assert cells["new"]["in1k-knn"] == "waiting"
    assert cells["new"]["voc07-svm"] == cells["b"]["voc12aug-fcn-20k"] == "not run"
    assert cells["unknown"]["in1k-knn"] == "–"
    assert r"failed: no \<space\> left\|here. Again: `siambench svm --config x.yaml`" in text
    section = text.split("## Linear SVM")[1].split("\n## ")[0]
    assert "No row yet:" in section
    assert r"- svm voc07-svm b failed: no \<space\>" in section


def test_a_backbone_that_was_not_made_explains_all_its_cells(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("a",), benchmarks=("in1k-knn", "voc07-svm"))
    job(tmp_path, "pretrain", "", "net", "failed", "the loss is not finite")
    job(tmp_path, "knn", "in1k-knn", "net", "waiting")
    text, cells = first_table(tmp_path)
    assert cells["net"]["in1k-knn"] == cells["net"]["voc07-svm"] == "failed <sup>1</sup>"
    assert text.count("<sup>1</sup> pretrain net failed: the loss is not finite.") == 1


def test_what_ran_before_its_backbone_broke_keeps_its_own_reason(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("a",), benchmarks=("in1k-knn",))
    job(tmp_path, "convert", "", "net", "failed", "again, elsewhere")
    job(tmp_path, "knn", "in1k-knn", "net", "failed", "its own")
    text, _ = first_table(tmp_path)
    assert "failed: its own." in text
    assert "elsewhere" not in text.split("### Gap")[0].split("## kNN")[0]


def test_of_two_run_folders_the_telling_state_counts(tmp_path: Path) -> None:
    made.fill(tmp_path / "x", backbones=("a",), benchmarks=("in1k-knn",))
    job(tmp_path / "x", "knn", "in1k-knn", "b", "waiting")
    (tmp_path / "y").mkdir()
    job(tmp_path / "y", "knn", "in1k-knn", "b", "running")
    text = write_report([tmp_path / "x", tmp_path / "y"], tmp_path / "report.md").read_text()
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Which backbone")]
    assert table.loc["b"].iloc[2] == "running"


def test_a_folder_of_jobs_alone_has_a_report(tmp_path: Path) -> None:
    job(tmp_path, "knn", "in1k-knn", "b", "running")
    assert run_verb(VERBS["report"], [str(tmp_path)]) == 0
    (table,) = tables((tmp_path / "report.md").read_text()).values()
    assert table.loc["b", "in1k-knn"] == "running"


def test_the_gap_to_supervised_is_the_difference_of_means(tmp_path: Path) -> None:
    made.fill(tmp_path, trials=2, benchmarks=("in1k-knn", "voc12aug-fcn-20k"))
    for path in sorted(tmp_path.glob("records/*-supervised-*.json")):
        body = json.loads(path.read_text())
        body.pop("digest")
        body["backbone"]["method"] = "Supervised"
        path.write_text(json.dumps({**body, "digest": digest_of(body)}))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    (table,) = [t for (h, _), t in tables(text).items() if h.startswith("Gap")]
    means = long_frame(tmp_path).groupby(["metric", "backbone"]).value.mean()
    assert list(table.index) == ["random", "simsiam"]
    for column, metric in {"top-1": 'top1{"T": 0.07, "k": 20}', "mIoU": "mIoU{}"}.items():
        (column,) = [c for c in table.columns if column in c]
        for backbone in table.index:
            expected = means[metric, backbone] - means[metric, "supervised"]
            cell = table.loc[backbone, column]
            assert float(cell.strip("*").replace("−", "-")) == pytest.approx(expected, abs=0.05001)
            assert cell.startswith("**+") == (expected > 0)


@pytest.mark.parametrize("baselines", [(), ("random", "supervised")])
def test_no_gap_without_the_one_baseline(tmp_path: Path, baselines: tuple[str, ...]) -> None:
    for record in made.fill(tmp_path / "x", benchmarks=("in1k-knn",)):
        if record.backbone["name"] in baselines:
            record.backbone["method"] = "supervised"
        made.save(tmp_path, record)
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    assert "Gap to the supervised" not in text
