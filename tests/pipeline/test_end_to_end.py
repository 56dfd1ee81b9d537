"""The whole pipeline at its smallest: killed, resumed, repeated, broken, and its report read back."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from siambench.backbone import read_backbone
from siambench.record import read_record

TINY = Path(__file__).parent / "tiny.yaml"
pytestmark = pytest.mark.slow


def _siambench(*arguments, **options):
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run that was killed once on the way."""
    root = tmp_path_factory.mktemp("run") / "tiny"
    command = [sys.executable, "-m", "pipeline", "run", str(TINY), "--root", str(root)]
    process = subprocess.Popen([*command, "--workers", "0"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list(root.glob("records/*.json"))) < 4 and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in root.glob("records/*.json")}
    assert len(kept) >= 4
    done = _siambench("run", TINY, "--root", root, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {root}/report.md"
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items()), "computed twice"
    return root


def test_every_job_left_a_valid_record(root):
    records = [read_record(p) for p in (root / "records").glob("*.json")]
    made = sorted((r.benchmark, r.backbone["name"], r.trial) for r in records)
    benchmarks = {
        "in1k-linear-lars-90e": 1,
        "in1k-linear-mhead-90e": 1,
        "in1k-knn": 1,
        "voc07-svm": 1,
        "voc07-lowshot": 1,
        "voc07-frcnn-c4": 2,
        "coco-mrcnn-c4-1x": 1,
        "voc12aug-fcn-20k": 1,
    }
    names = ("simsiam", "supervised", "random")
    assert made == sorted(
        (b, n, t) for b, trials in benchmarks.items() for n in names for t in range(trials)
    )
    for record in records:
        assert record.dataset.name == "digit-scenes"
        assert record.seconds > 0
        assert all(0 <= m.value <= 100 for m in record.metrics if m.unit == "%")
        path = root / "backbones" / f"{record.backbone['name']}.safetensors"
        assert record.backbone["method"] == read_backbone(path)[1].method


def test_backbones_are_what_was_trained(root):
    for name in ("simsiam", "supervised"):
        checkpoint = torch.load(root / f"pretrain/{name}/checkpoint_0002.pth", weights_only=True)
        state, meta = read_backbone(root / f"backbones/{name}.safetensors")
        assert meta.epochs == 2
        for key, tensor in state.items():
            assert torch.equal(tensor, checkpoint["state_dict"][f"backbone.{key}"])
    assert read_backbone(root / "backbones/random.safetensors")[1].method == "random init"


def test_the_report_holds_the_records_numbers(root):
    report = (root / "report.md").read_text()
    for record_file in (root / "records").glob("*.json"):
        assert f"records/{record_file.name}" in report
    links = re.findall(r"\]\(([^)#]+)\)", report) + re.findall(r"(?m)^\[r\d+\]: (\S+)", report)
    assert len(links) > 27
    for link in links:
        assert "://" in link or (root / link).is_file(), link
    record = next(read_record(p) for p in (root / "records").glob("in1k-knn-simsiam-*.json"))
    assert f"{record.metric('top1', k=10):.1f}" in report
    assert (root / "plots").is_dir()


def test_a_second_run_computes_nothing(root):
    before = {p: p.read_bytes() for p in sorted(root.glob("records/*"))}
    backbones = {p: p.read_bytes() for p in sorted(root.glob("backbones/*"))}
    report = (root / "report.md").read_bytes()
    done = _siambench("run", TINY, "--root", root, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already recorded") == len(before) == 27
    assert {p: p.read_bytes() for p in sorted(root.glob("records/*"))} == before
    assert {p: p.read_bytes() for p in sorted(root.glob("backbones/*"))} == backbones
    assert (root / "report.md").read_bytes() == report


def test_a_damaged_record_is_computed_again_to_the_same_numbers(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    victim = next((copy / "records").glob("in1k-knn-random-*.json"))
    metrics = read_record(victim).metrics
    victim.write_text(victim.read_text()[:200])
    done = _siambench("run", TINY, "--root", copy, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "computing it again" in done.stderr
    assert read_record(victim).metrics == metrics


def test_what_fails_does_not_stop_the_rest_and_nothing_is_lost(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    picture = sorted((copy / "data/VOCdevkit/VOC2007/JPEGImages").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:200])
    for record in (copy / "records").glob("voc07-svm-*.json"):
        record.unlink()
    for record in (copy / "records").glob("in1k-knn-*.json"):
        record.unlink()
    done = _siambench("run", TINY, "--root", copy, "--workers", 0)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "svm voc07-svm simsiam:" in done.stdout
    assert picture.name in done.stdout
    assert len(list((copy / "records").glob("in1k-knn-*.json"))) == 3
    assert len(list((copy / "records").glob("*.json"))) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("verb: knn", "verb: knm"), "benchmarks[2]: verb 'knm' is not one of"),
        (
            lambda t: t.replace("k: [1, 10]", "k: lots"),
            "wrong.yaml:19: benchmarks[2].k: k: 'lots' is not a list of whole numbers",
        ),
        (
            lambda t: t.replace("epochs: 2", "epoch: 2"),
            "wrong.yaml:7: backbones.simsiam.pretrain.epoch: pretrain knows no 'epoch'; is 'epochs' meant?",
        ),
        (
            lambda t: t.replace("epochs: 2", "epochs: 0"),
            "wrong.yaml:7: backbones.simsiam.pretrain.epochs: epochs is 0; it must be at least 1",
        ),
        (
            lambda t: t.replace("epochs: 2", "options: {speed: 2}"),
            "wrong.yaml:7: backbones.simsiam.pretrain.options.speed: options.speed: simsiam has no such option",
        ),
        (
            lambda t: t.replace("name: tiny", "title: tiny"),
            "wrong.yaml:2: title: a run file knows no 'title'",
        ),
        (lambda t: t.replace("name: tiny", ""), "it has no 'name'"),
        (lambda t: "", "is not a run file: it must be a mapping"),
        (
            lambda t: t.replace("{checkpoint: ", "{pretrain: "),
            "backbones.random.pretrain is 'random:",
        ),
        (lambda t: t + "  - knn\n", "benchmarks[8] is 'knn'; it must be a mapping such as"),
        (lambda t: t.replace("data: coco", "data: 7"), "benchmarks[6].data is 7"),
        (lambda t: t.replace("{checkpoint:", "{weights:"), "backbones.random: say one of"),
        (
            lambda t: t.replace("{checkpoint:", "{to: timm, checkpoint:"),
            "backbones.random: to is the run's to say",
        ),
        (
            lambda t: t.replace('{checkpoint: "random:resnet10-w8"}', "{checkpoint: gone.pth}"),
            "backbones.random: gone.pth does not exist",
        ),
        (
            lambda t: t.replace('{checkpoint: "random:resnet10-w8"}', "{backbone: b.safetensors}"),
            "backbones.random: b.safetensors does not exist",
        ),
        (
            lambda t: t.replace("{checkpoint:", "{backbone:"),
            "is no backbone file; say checkpoint in place of backbone",
        ),
        (lambda t: t + "  - [", "is not valid YAML"),
        (
            lambda t: t.replace("backbones:", "executor: {kind: slrum}\nbackbones:", 1),
            "wrong.yaml:4: executor.kind:",
        ),
        (
            lambda t: t.replace(
                "backbones:", "executor: {verbs: {detect: {gpu: 8}}}\nbackbones:", 1
            ),
            "wrong.yaml:4: executor.verbs.detect.gpu: a verb of the executor knows no 'gpu'; is 'gpus' meant?",
        ),
        (lambda t: t.replace("verb: svm,", "verb: svm, out: x,", 1), ".out is the run's to say"),
        (
            lambda t: t.replace("  random:", "  simsiam: {checkpoint: a}\n  random:"),
            "simsiam is said twice",
        ),
        (
            lambda t: t.replace("verb: svm,", "verb: svm, backbones: [simsam],", 1),
            "backbones knows no 'simsam'; is 'simsiam' meant?",
        ),
    ],
)
def test_a_wrong_run_file_is_refused_before_anything_is_done(tmp_path, change, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(change(TINY.read_text()))
    done = _siambench("run", path, "--root", tmp_path / "root")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "root").exists()


def test_json_output_is_json(root, tmp_path):
    done = _siambench(
        *("knn", "--json", "--backbone", root / "backbones/random.safetensors"),
        *("--data", root / "data/imagenet", "--out", tmp_path, "--k", "[5]"),
        *("--resize", 24, "--crop", 24, "--workers", 0),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["metrics"][0]["name"] == "top1"
