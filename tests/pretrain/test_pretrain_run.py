"""A run as the user sees it: monitors, resume after SIGKILL bit for bit, and clear refusals."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from pretrain.config import PretrainConfig, ViewsConfig
from pretrain.loop import run
from siambench.errors import UserError


@pytest.fixture
def config(scenes, tmp_path):
    return PretrainConfig(
        data=str(scenes / "imagenet"),
        out=str(tmp_path / "run"),
        arch="resnet10-w8",
        epochs=4,
        batch_size=20,
        dim=16,
        pred_dim=4,
        views=ViewsConfig(crop=24, resize=24, recolour=0.5, rotate=5.0),
        knn_every=2,
        knn_images=40,
        device="cpu",
        workers=0,
    )


def _weights(path):
    state = torch.load(path, weights_only=True)
    flat = {f"m.{k}": v for k, v in state["state_dict"].items()}
    for i, moments in state["optimizer"]["state"].items():
        flat[f"o.{i}"] = moments["momentum_buffer"]
    return flat


def _monitor(out):
    lines = [json.loads(x) for x in (out / "monitor.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_killed_and_resumed_is_bit_for_bit_the_same(config, tmp_path):
    whole = run(replace(config, out=str(tmp_path / "whole")))
    out = tmp_path / "killed"
    arguments = ["--data", config.data, "--out", str(out), "--arch", config.arch, "--workers", "1"]
    arguments += ["--epochs", "4", "--batch-size", "20", "--dim", "16", "--pred-dim", "4"]
    arguments += ["--views.crop", "24", "--views.resize", "24", "--views.recolour", "0.5"]
    arguments += [
        "--views.rotate",
        "5",
        "--knn-every",
        "2",
        "--knn-images",
        "40",
        "--device",
        "cpu",
    ]
    for after in (1, 3):
        process = subprocess.Popen([sys.executable, "-m", "pretrain", *arguments])
        deadline = time.monotonic() + 120
        while not (out / f"checkpoint_{after:04d}.pth").exists() and time.monotonic() < deadline:
            if process.poll() is not None:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = run(replace(config, out=str(out)))  # 0 workers instead of 1
    assert resumed.name == whole.name == "checkpoint_0004.pth"
    a, b = _weights(whole), _weights(resumed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert _monitor(out) == _monitor(tmp_path / "whole")


def test_monitor_lines_and_a_second_run_that_does_nothing(config, tmp_path):
    path = run(config)
    before = path.stat().st_mtime_ns
    lines = _monitor(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert [line["knn_top1"] is not None for line in lines] == [False, True, False, True]
    assert all(line["std_target"] == 0.25 and 0 < line["std"] < 0.5 for line in lines)
    assert run(config) == path
    assert path.stat().st_mtime_ns == before
    assert sorted(p.name for p in (tmp_path / "run").glob("*.pth")) == [
        "checkpoint_0003.pth",
        "checkpoint_0004.pth",
    ]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path, capsys):
    path = run(config)
    expected = _weights(path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert run(config) == path
    assert "is damaged" in capsys.readouterr().err
    assert all(torch.equal(v, expected[k]) for k, v in _weights(path).items())
    for checkpoint in (tmp_path / "run").glob("*.pth"):
        checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        run(config)


def test_other_settings_do_not_continue_a_run(config):
    run(replace(config, epochs=1))
    with pytest.raises(UserError, match=r"was made with base_lr = 0.05, not 0.1"):
        run(replace(config, epochs=1, base_lr=0.1))


def test_bad_input_is_one_line_before_the_first_step(config, scenes, tmp_path):
    with pytest.raises(UserError, match=r"image folder: .*nowhere.* does not exist"):
        run(replace(config, data=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="batch_size 200 is larger than the 100 training images"):
        run(replace(config, batch_size=200))
    with pytest.raises(UserError, match="architecture 'resnet99'"):
        run(replace(config, arch="resnet99"))
    copy = shutil.copytree(scenes / "imagenet", tmp_path / "imagenet")
    victim = sorted((copy / "train/four").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(UserError, match=rf"image .*{victim.name} cannot be decoded"):
        run(replace(config, data=str(copy)))
    run(replace(config, data=str(copy), epochs=1, skip_bad=True))
    for image in (copy / "train/one").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"class folder .*train/one has no images"):
        run(replace(config, data=str(copy)))


def test_a_loss_that_is_not_finite_stops_the_run(config):
    with pytest.raises(UserError, match="the loss is nan in epoch"):
        run(replace(config, base_lr=1e20, method="supervised"))


@pytest.mark.gpu
def test_gpu_run(config):
    path = run(replace(config, device="cuda", bf16=True))
    assert all(torch.isfinite(v.float()).all() for v in _weights(path).values())
