"""The linear probe and kNN under torchrun: the same result from one process and from several."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eval_linear.probe
from eval_linear import VERBS
from siambench.cli import run_verb
from siambench.record import Record, read_record


def torchrun(module: str, arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def arguments_of(scenes: Path, backbone_file: Path, out: Path, *more: str) -> list[str]:
    common = [f"--backbone={backbone_file}", f"--data={scenes / 'imagenet'}", f"--out={out}"]
    return [*common, "--resize=32", "--crop=32", "--device=cpu", "--workers=0", *more]


ONLINE = [
    "--road=online",
    "--layers=[feature2, avgpool]",
    "--batch_norm=true",  # statistics of the whole batch, not of a process's part
    "--base_lr=[0.1, 1]",
    "--batch_size=33",  # parts of unequal length, and a last batch of one image
    "--epochs=3",
]


def only_record(out: Path) -> Record:
    (path,) = (out / "records").iterdir()
    return read_record(path)


def head_of(out: Path) -> dict[str, torch.Tensor]:
    (path,) = (out / "jobs").glob("*/head.safetensors")
    return load_file(path)


def test_two_processes_train_as_one(scenes, backbone_file, tmp_path, monkeypatch):
    """The papers' road; and what one process left behind, two go on with."""
    alone, begun = tmp_path / "alone", tmp_path / "begun"
    assert run_verb(VERBS["linear"], arguments_of(scenes, backbone_file, alone, *ONLINE)) == 0
    save = eval_linear.probe.Probe.save

    def killed(self, path, epochs_done, batches=0):
        save(self, path, epochs_done, batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_linear.probe.Probe, "save", killed)
    assert run_verb(VERBS["linear"], arguments_of(scenes, backbone_file, begun, *ONLINE)) == 130
    done = torchrun("eval_linear", arguments_of(scenes, backbone_file, begun, *ONLINE))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("avgpool") == 1  # one process speaks
    one, two = only_record(alone), only_record(begun)
    assert one.key == two.key
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert (a.name, a.params) == (b.name, b.params)
        assert b.value == pytest.approx(a.value, abs=1e-6)
    wanted = head_of(alone)
    for name, tensor in head_of(begun).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)
    assert not list(begun.glob("jobs/*/checkpoint*"))


def test_extraction_is_shared(scenes, backbone_file, tmp_path):
    """kNN from features that two processes made, and nothing left to extract."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    grid = ["--k=[5]", "--temperature=[0.07]"]
    assert run_verb(VERBS["knn"], arguments_of(scenes, backbone_file, alone, *grid)) == 0
    done = torchrun("eval_linear.knn", arguments_of(scenes, backbone_file, shared, *grid))
    assert done.returncode == 0, done.stderr
    assert only_record(alone).metrics == only_record(shared).metrics
    for one in alone.glob("features/*"):
        rows = np.load(one / "features.npy")
        theirs = np.load(shared / "features" / one.name / "features.npy")
        np.testing.assert_allclose(rows, theirs, rtol=1e-3)


def test_the_short_road_needs_the_others_for_features_only(scenes, backbone_file, tmp_path):
    """Two trials: the second process is at the second one's features while the first trains."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    probe = ["--epochs=3", "--base_lr=[0.1, 1]", "--views=1", "--trials=2", "--flip=false"]
    assert run_verb(VERBS["linear"], arguments_of(scenes, backbone_file, alone, *probe)) == 0
    done = torchrun("eval_linear", arguments_of(scenes, backbone_file, shared, *probe))
    assert done.returncode == 0, done.stderr
    one, two = (
        {path.name: read_record(path).metrics for path in (out / "records").iterdir()}
        for out in (alone, shared)
    )
    assert len(one) == 2
    assert one.keys() == two.keys()
    for name, metrics in one.items():
        for a, b in zip(metrics, two[name], strict=True):
            assert b.value == pytest.approx(a.value, abs=1e-6)


def test_what_is_wrong_is_said_once(scenes, backbone_file, tmp_path):
    wild = ["--road=online", "--base_lr=1e30", "--weight_decay=1", "--epochs=3", "--batch_size=32"]
    done = torchrun("eval_linear", arguments_of(scenes, backbone_file, tmp_path, *wild))
    assert done.returncode != 0
    assert done.stderr.count("training diverged") == 1
