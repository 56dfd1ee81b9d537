"""The plan of a run, how it stands, and what this machine can do."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.jobs import lay_out
from pipeline.plan import planned_jobs, size, span
from pipeline.runfile import shipped
from pipeline.standing import standings
from siambench.jobs import JobState, read_states, write_state
from siambench.record import read_record, write_record

RUN = """name: small
trials: 2
backbones:
  random: {checkpoint: "random:resnet10-w8"}
  other: {checkpoint: "random:resnet10-w8", seed: 1}
benchmarks:
  - {verb: knn, data: imagenet, k: [5], temperature: [0.07], resize: 24, crop: 24}
  - {verb: svm, preset: voc07-lowshot, data: VOCdevkit, costs: [1.0], k: [1], samples: 1, resize: 0,
     size: 32, backbones: [random]}
"""


@pytest.fixture(scope="module")
def ran(scenes, tmp_path_factory):
    """A finished run: its file and its folder. Do not write there."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(RUN)
    root = folder / "runs/small"
    words = ["run", str(folder / "small.yaml"), "--root", str(root), "--data", str(scenes)]
    assert main([*words, "--workers", "0"]) == 0
    return folder / "small.yaml", root


def test_everything_done_is_said_to_be_done(ran, scenes, capsys):
    file, root = ran
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert main(["plan", str(file), "--root", str(root), "--data", str(scenes)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 jobs: 5 done, 0 to do"
    assert lines[1:-1] == [
        "├── convert random: done",
        "│   ├── knn random: done",
        "│   └── svm voc07-lowshot random: done",
        "└── convert other: done",
        "    └── knn other: done",
    ]
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_what_is_left_is_told_with_its_length(ran, scenes, tmp_path, capsys):
    file, root = ran
    copy = Path(shutil.copytree(root.parent, tmp_path / "runs")) / "small"
    svm = sorted((copy / "records").glob("voc07-lowshot-*"))
    assert len(svm) == 2
    write_record(svm[0], replace(read_record(svm[0]), seconds=7200.0))
    earlier = tmp_path / "runs/earlier/records"
    earlier.mkdir(parents=True)
    shutil.copy(svm[0], earlier)
    svm[0].unlink()
    knn = next((copy / "records").glob("knn-other-*"))
    write_record(earlier / "knn.json", replace(read_record(knn), seconds=60.0))
    (copy / "backbones/other.safetensors").unlink()
    run = lay_out(RunConfig(str(file), root=str(copy), data=str(scenes)))
    left = {name: s.left for name, s in standings(run).items()}
    assert left == {
        "convert random": 0,
        "knn random": 0,
        "svm voc07-lowshot random": 1,
        "convert other": 1,
        "knn other": 1,
    }
    planned = {p.job.name: p for p in planned_jobs(run)}
    assert planned["knn other"].waits_for == ("convert other",)
    # Of the records like it, its own other trial and the earlier run's: the median.
    kept = read_record(svm[1]).seconds
    assert planned["svm voc07-lowshot random"].estimate.seconds == pytest.approx(
        (7200 + kept) / 2, rel=1e-6
    )
    assert main(["plan", str(file), "--root", str(copy), "--data", str(scenes)]) == 0
    out = capsys.readouterr().out
    assert "svm voc07-lowshot random: will run, 1 of 2 trials done, about 1 h" in out
    assert "knn other: waits, about" in out
    assert "5 jobs: 2 done, 3 to do; about 1 h" in out


def test_other_settings_are_another_evaluation(ran, scenes):
    file, root = ran
    changed = file.with_name("changed.yaml")
    changed.write_text(RUN.replace("k: [5]", "k: [7]"))
    run = lay_out(RunConfig(str(changed), root=str(root), data=str(scenes)))
    left = {name: s.left for name, s in standings(run).items()}
    assert left["knn random"] == 1
    assert left["svm voc07-lowshot random"] == 0


@pytest.mark.parametrize("name", shipped())
def test_shipped_run_files_are_whole(name, tmp_path):
    for folder in ("imagenet", "places205", "VOCdevkit", "coco", "cityscapes"):
        (tmp_path / folder).mkdir()
    run = lay_out(RunConfig(name, root=str(tmp_path / "root"), data=str(tmp_path)))
    assert run.jobs
    assert not (tmp_path / "root").exists()
    names = {job.name for job in run.jobs}
    assert len(names) == len(run.jobs)
    assert all(set(job.needs) <= names for job in run.jobs)


def test_the_paper_s_tables_are_whole(tmp_path):
    for folder in ("imagenet", "VOCdevkit", "coco"):
        (tmp_path / folder).mkdir()
    jobs = lay_out(RunConfig("simsiam-paper", root=str(tmp_path / "r"), data=str(tmp_path))).jobs
    epochs = {j.backbone: j.config.epochs for j in jobs if j.verb == "pretrain"}
    assert epochs == {f"simsiam-{n}e": n for n in (100, 200, 400, 800)} | {"simsiam-optimal": 200}
    assert {j.config.batch_size for j in jobs if j.verb == "pretrain"} == {256}
    done = {(j.benchmark, j.backbone) for j in jobs if j.benchmark}
    table5 = ("scratch", "supervised", "simsiam-200e", "simsiam-optimal")
    detection = ("voc07-frcnn-c4", "voc0712-frcnn-c4-24k", "coco-mrcnn-c4-1x")
    table4 = {("in1k-linear-lars-90e", name) for name in epochs if name != "simsiam-optimal"}
    assert done == table4 | {(benchmark, name) for benchmark in detection for name in table5}


def test_status_says_how_each_job_stands(ran, tmp_path, capsys):
    _, root = ran
    assert main(["status", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "5 jobs: 5 done"
    again = f"siambench knn --config {root}/run/knn.random.yaml"
    state = next(s for s in read_states(root) if s.name == "knn random")
    assert state.retry == again
    assert json.loads((root / "run/knn.random.yaml").read_text())["k"] == [5]
    for job in (
        JobState("a", "failed", reason="no data", retry="siambench knn --config a.yaml"),
        JobState("b", "queued", scheduler_id="17_3"),
        JobState("c", "running", host="elsewhere", pid=1, started="2026-01-01T00:00:00+00:00"),
        JobState("d", "waiting", reason="needs a"),
    ):
        write_state(tmp_path, job)
    assert main(["status", str(tmp_path), "--json"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(
        x.split()
        == ["failed", "a", "no", "data", "again:", "siambench", "knn", "--config", "a.yaml"]
        for x in lines
    )
    assert any(x.split() == ["queued", "b", "Slurm", "17_3"] for x in lines)
    assert any(x.startswith("lost") and "not heard of again" in x for x in lines)
    assert lines[-1].startswith("4 jobs: ")
    assert main(["status", str(tmp_path / "gone")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["status", str(tmp_path / "empty")]) == 2
    assert "has no jobs" in capsys.readouterr().err


def test_a_second_run_is_told_who_holds_the_folder(ran, scenes, tmp_path, capsys):
    file, root = ran
    copy = shutil.copytree(root, tmp_path / "copy")
    code = f"""
from siambench.hold import held
from pathlib import Path
with held(Path({str(copy / "run/hold")!r}), Path({str(copy)!r})):
    print(1, flush=True)
    input()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    first.stdout.readline()
    words = [str(file), "--root", str(copy), "--data", str(scenes)]
    assert main(["run", *words]) == 2
    assert f"{copy} is in use by process {first.pid} on " in capsys.readouterr().err
    assert main(["plan", *words]) == 0
    assert f"held by process {first.pid} on " in capsys.readouterr().out
    first.communicate(b"\n")
    assert main(["run", *words, "--workers", "0"]) == 0


def test_bad_data_are_said_before_pre_training(scenes, tmp_path, capsys):
    data = shutil.copytree(scenes, tmp_path / "data")
    picture = sorted((data / "VOCdevkit/VOC2007/JPEGImages").iterdir())[0]
    picture.write_bytes(b"no picture")
    file = tmp_path / "r.yaml"
    # the pre-training itself is refused too, after the check: there are fewer images
    file.write_text(
        RUN.replace(
            '{checkpoint: "random:resnet10-w8"}',
            "{pretrain: {preset: digits-simsiam, arch: resnet10-w8, batch_size: 100000}}",
        )
    )
    assert main(["run", str(file), "--root", str(tmp_path / "root"), "--data", str(data)]) == 2
    captured = capsys.readouterr()
    assert captured.err.index(picture.name) < captured.err.index("pretrain random")
    assert "FAILED svm voc07-lowshot random" in captured.out
    assert "not tried: knn random (needs convert random)" in captured.out


def test_records_of_other_data_do_not_count_where_the_data_are_opened(ran, scenes, tmp_path):
    file, root = ran
    data = shutil.copytree(scenes, tmp_path / "data")
    sorted((data / "imagenet/train").glob("*/*"))[0].unlink()
    run = lay_out(RunConfig(str(file), root=str(root), data=str(data)))
    assert {s.left for s in standings(run).values()} == {0}
    left = {name: s.left for name, s in standings(run, look=True).items() if s.left}
    assert left == {"knn random": 1, "knn other": 1}
    sorted((data / "imagenet/train").glob("*/*"))[0].write_bytes(b"")
    problems = {name: s.problem for name, s in standings(run, look=True).items() if s.problem}
    assert set(problems) == {"knn random", "knn other"}


def test_a_backbone_file_has_the_name_of_the_run_file(ran, scenes, tmp_path, capsys):
    """Two files of one name, and one file under two names."""
    _, root = ran
    for place, source in (("a", "random"), ("b", "other")):
        (tmp_path / place).mkdir()
        shutil.copy(root / f"backbones/{source}.safetensors", tmp_path / place / "x.safetensors")
    where = {"ours": "a", "baseline": "b", "renamed": "a"}
    backbones = "".join(
        f"  {name}: {{backbone: {tmp_path / place}/x.safetensors}}\n"
        for name, place in where.items()
    )
    start = RUN.index("  random:"), RUN.index("benchmarks:")
    text = RUN[: start[0]] + backbones + RUN[start[1] :].partition("  - {verb: svm")[0]
    (tmp_path / "named.yaml").write_text(text)
    words = [str(tmp_path / "named.yaml"), "--root", str(tmp_path / "root"), "--data", str(scenes)]
    assert main(["run", *words, "--workers", "0"]) == 0
    records = [read_record(p) for p in (tmp_path / "root/records").glob("*.json")]
    assert {r.backbone["name"] for r in records} == set(where)
    run = lay_out(RunConfig(words[0], root=words[2], data=words[4]))
    assert {s.left for s in standings(run).values()} == {0}
    report = (tmp_path / "root/report.md").read_text()
    assert "x (" not in report
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert all(any(name in row and "–" not in row for row in rows) for name in where)


def test_earlier_pre_training_is_a_measure_only_with_the_same_settings(scenes, tmp_path):
    text = RUN.replace(
        'random: {checkpoint: "random:resnet10-w8"}', "random: {pretrain: {preset: digits-simsiam}}"
    )
    (tmp_path / "r.yaml").write_text(text)
    run = lay_out(RunConfig(str(tmp_path / "r.yaml"), root=str(tmp_path / "new"), data=str(scenes)))
    job = run.jobs[0]
    earlier = tmp_path / "old"
    for folder in ("records", "run", "pretrain/random"):
        (earlier / folder).mkdir(parents=True)
    line = {"epoch": 1, "loss": 1.0, "seconds": 10.0}
    (earlier / "pretrain/random/monitor.jsonl").write_text(json.dumps(line) + "\n")
    for epochs, arch, expected in ((3, "resnet10-w16", 10.0 * 12), (3, "resnet50", None)):
        values = job.values | {"epochs": epochs, "out": "elsewhere"}
        values |= {"arch": arch} if arch != job.config.arch else {}
        (earlier / "run/pretrain.random.yaml").write_text(json.dumps(values))
        found = {p.job.name: p.estimate.seconds for p in planned_jobs(run)}
        assert found["pretrain random"] == expected


def test_doctor_looks_at_each_part(scenes, capsys):
    assert main(["doctor", "--data", str(scenes)]) == 0
    out = capsys.readouterr().out
    for what in ("Python", "torch", "faiss", "CUDA", "detectron2", "Slurm", "disk", "cityscapes"):
        assert f" {what} " in out
    assert f"siambench data check voc07 {scenes / 'VOCdevkit'}" in out
    assert main(["doctor", "--data", str(scenes / "gone")]) == 2


def test_doctor_says_what_is_broken(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["doctor"]) == 2
    assert "✗ faiss" in capsys.readouterr().out


def test_spans_and_sizes():
    assert [span(s) for s in (0, 59.6, 3600, 3661, 90000)] == [
        "0 s",
        "1 min",
        "1 h",
        "1 h 1 min",
        "1 d 1 h",
    ]
    assert [size(n) for n in (5, 1500, 2.5e9, 3e12)] == ["5 B", "1.5 kB", "2.5 GB", "3 TB"]
    assert os.sep == "/"
