"""The verb from images to record: both modes, all layers, kills, workers, bad features."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_voc import COLOURS, make_small_voc

import eval_lowshot.full
from eval_lowshot import VERBS
from eval_lowshot.config import SvmConfig
from eval_lowshot.evaluate import run
from eval_lowshot.features import image_transform, unit_features
from siambench.backbone import BackboneMeta, save_backbone
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.data.images import decode
from siambench.errors import UserError
from siambench.features import normalise
from siambench.resnet import build_resnet

QUICK = {"costs": [0.1, 1.0], "resize": 0, "size": 32, "workers": 0}
LOW = {"mode": "lowshot", "k": [1, 3], "samples": 2, "negatives_per_positive": 3}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_small_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def config(voc, backbone_file, tmp_path):
    def make(**fields):
        values = {"data": str(voc), "backbone": str(backbone_file), "out": str(tmp_path / "run")}
        return SvmConfig(**{**values, **QUICK, **fields})

    return make


def plain(record):
    return [(m.name, m.value, m.params) for m in record.metrics]


def scratch(config):
    (kept,) = Path(config.out).glob("jobs/svm-*/avgpool.jsonl")
    return kept.parent


def test_full(config, capsys):
    (record,) = run(config(layers=["avgpool", "feature5", "feature1"]))
    for layer in ("avgpool", "feature5", "feature1"):
        of_class = [record.metric("AP", layer=layer, **{"class": name}) for name in COLOURS]
        assert record.metric("mAP", layer=layer) == pytest.approx(np.mean(of_class))
        assert record.metric("mAP", layer=layer) > 45  # 40 % of the images are positive
        assert record.metric("cost", layer=layer, **{"class": "red"}) in (0.1, 1.0)
    assert record.protocol["difficult_train"] == "negative"
    assert record.dataset.counts["trainval"] == 48
    assert f"feature5  mAP {record.metric('mAP', layer='feature5'):.2f}" in capsys.readouterr().out


def test_lowshot(config, capsys):
    asked = config(**LOW)
    (record,) = run(asked)
    for k in (1, 3):
        of_sample = [
            record.metric("mAP_sample", k=k, sample=sample, layer="avgpool") for sample in range(2)
        ]
        at = {"k": k, "layer": "avgpool"}
        assert record.metric("mAP", **at) == pytest.approx(np.mean(of_sample))
        assert record.metric("mAP_std", **at) == pytest.approx(np.std(of_sample))
        assert record.metric("mAP_min", **at) == min(of_sample)
        assert record.metric("mAP_max", **at) == max(of_sample)
        assert 30 < record.metric("mAP_honest", **at) <= 100
    assert len(capsys.readouterr().out.splitlines()) == 2
    drawn = json.loads((scratch(asked) / "samples.json").read_text())
    labels = np.load(asked.data + "/labels-trainval.npy")
    assert len(drawn["samples"]) == 2 * 2 * 3
    assert drawn["trainval"][:1] == ["trainval0000"]
    for row in drawn["samples"]:
        column = labels[row["images"], sorted(COLOURS).index(row["class"])]
        assert (column == 1).sum() == row["k"]
        assert (column == -1).sum() == 3 * row["k"]


def test_trials_draw_other_samples(config):
    first, second = run(config(**{**LOW, "k": [1]}, trials=2))
    assert first.metric("mAP", k=1) != second.metric("mAP", k=1)
    assert (first.seed, second.seed) == (0, 1)


def test_two_workers_give_the_same_numbers(config, tmp_path):
    (alone,) = run(config(**LOW))
    (together,) = run(config(**LOW, workers=2, out=str(tmp_path / "other")))
    assert plain(alone) == plain(together)


def test_killed_and_started_again(config, tmp_path, monkeypatch):
    """SIGKILL after two classes: both are kept, with a line cut off after them, and not done again."""
    (wanted,) = run(config(out=str(tmp_path / "uninterrupted")))
    asked = config()
    arguments = [f"--{name}={getattr(asked, name)}" for name in ("backbone", "data", "out")]
    arguments += ["--costs=[0.1,1.0]", "--resize=0", "--size=32", "--workers=0"]
    killer = (
        "import itertools, os, signal, sys\n"
        "from eval_lowshot import VERBS, tasks\n"
        "from siambench.cli import run_verb\n"
        "calls, line = itertools.count(), tasks._line\n"
        "def deadly(key, result):\n"
        "    if next(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return line(key, result)\n"
        "tasks._line = deadly\n"
        "run_verb(VERBS['svm'], sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", killer, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    kept = scratch(asked) / "avgpool.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    with open(kept, "a") as handle:
        handle.write('{"task": ["avgpool", "red"], "resul')

    calls = []
    real = eval_lowshot.full.full_class
    monkeypatch.setattr(
        eval_lowshot.full, "full_class", lambda *args: calls.append(args) or real(*args)
    )
    (resumed,) = run(asked)
    assert len(calls) == 1
    assert plain(resumed) == plain(wanted)
    assert len(kept.read_text().splitlines()) == 3
    run(asked)
    assert len(calls) == 1  # the record stands


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    """The worker kills its parent and waits for ever; the pipe it holds closes when it ends."""
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "def work(parent, pipe):\n"
        "    os.open(pipe, os.O_WRONLY)\n"
        "    os.kill(parent, signal.SIGKILL)\n"
        "    while True: signal.pause()\n"
    )
    script = (
        "import os, sys, time; from pathlib import Path; import deadly\n"
        "from eval_lowshot.tasks import run_tasks\n"
        "folder = Path(sys.argv[1])\n"
        "tasks = {('kill',): (deadly.work, (os.getpid(), str(folder / 'pipe')))}\n"
        "tasks |= {('wait', n): (time.sleep, (99,)) for n in range(3)}\n"
        "run_tasks(tasks, folder / 'kept', 'deadly', 2)\n"
    )
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    parent = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    assert parent.returncode == -signal.SIGKILL
    ready, _, _ = select.select([pipe], [], [], 30)
    assert ready
    assert os.read(pipe, 1) == b""
    os.close(pipe)


def test_features_are_shared_by_the_two_modes(config, monkeypatch):
    run(config())
    folder = Path(config().out) / "features"
    before = sorted(p.name for p in folder.iterdir())
    assert len(before) == 2

    def refuse(*args, **kwargs):
        raise AssertionError("extracted again")

    monkeypatch.setattr("siambench.cache.normalised_batches", refuse)
    run(config(**LOW))
    assert sorted(p.name for p in folder.iterdir()) == before


def test_features_are_the_backbones_at_unit_length(config, backbone_file):
    asked = config()
    run(asked)
    (path,) = Path(asked.out).glob("features/test-avgpool-*/features.npy")
    x = unit_features({("test", "avgpool"): np.load(path)}, "test", "avgpool")
    backbone = load_backbone(backbone_file)
    image = decode(f"{asked.data}/VOCdevkit/VOC2007/JPEGImages/test0000.jpg")
    pixels = normalise(image_transform(asked)(image)[None], backbone.meta.mean, backbone.meta.std)
    with torch.inference_mode():
        feature = backbone.features(pixels)[0].double().numpy()
    np.testing.assert_allclose(x[0], feature / (np.linalg.norm(feature) + 1e-5), atol=1e-5)
    assert x.dtype == np.float64


def test_transforms(config):
    image = Image.new("RGB", (500, 375))
    left_half = Image.new("RGB", (250, 375), (255, 255, 255))
    image.paste(left_half)
    for fields in ({"resize": 256}, {"resize": 0}):
        squashed = image_transform(config(transform="squash", size=224, **fields))(image)
        assert squashed.shape == (3, 224, 224)
        assert (squashed[0, 0] > 127).sum() == 112
    narrow = Image.new("RGB", (100, 200))
    narrow.paste(Image.new("RGB", (100, 50), (255, 255, 255)))  # the top quarter
    squashed = image_transform(config(transform="squash", resize=64, size=32))(narrow)
    assert (squashed[0, :, 0] > 127).sum() == 8
    cropped = image_transform(config(transform="centercrop", resize=32, size=32))(narrow)
    assert (cropped[0, :, 0] > 127).sum() == 0  # the middle half only


def test_collapsed_backbone(config, tmp_path):
    state = build_resnet("resnet10-w16").state_dict()
    state = {name: torch.zeros_like(t) if t.is_floating_point() else t for name, t in state.items()}
    path = tmp_path / "collapsed.safetensors"
    save_backbone(path, state, BackboneMeta(arch="resnet10-w16", method="none", epochs=0))
    with pytest.raises(UserError, match="avgpool is the same for all 48 images of trainval"):
        run(config(backbone=str(path)))


def test_full_takes_difficult_images_as_it_is_told(config, monkeypatch):
    """Coloured squares of 3 px are "difficult": as negatives or left out, the classifier differs."""
    (negative,) = run(config(difficult_train="negative"))
    (dropped,) = run(config(difficult_train="drop"))
    assert plain(negative) != plain(dropped)
    assert negative.protocol_hash != dropped.protocol_hash


def test_exit_codes(voc, backbone_file, tmp_path, capsys):
    given = ["--backbone", str(backbone_file), "--out", str(tmp_path), "--size=32", "--resize=0"]
    verb = VERBS["svm"]
    assert run_verb(verb, [*given, "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere/VOC2007 does not exist" in capsys.readouterr().err
    low = ["--mode=lowshot", "--k=[1,2]", "--samples=1", "--costs=virtex", "--workers=0"]
    assert run_verb(verb, [*given, *low, "--data", str(voc), "--negatives_per_positive=40"]) == 2
    assert "k = 2 needs 2 and 80" in capsys.readouterr().err
    assert run_verb(verb, [*given, *low, "--data", str(voc), "--negatives_per_positive=2"]) == 0
