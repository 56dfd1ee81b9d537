"""A run as the user sees it: monitors, resume after SIGKILL bit for bit, and clear refusals."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from pretrain import VERBS
from pretrain.config import AugmentConfig, PretrainConfig, check_config
from pretrain.loop import run
from siambench.config import make_config
from siambench.errors import UserError

EPOCHS = 16  # of the killed run: seconds are left when the first checkpoint is seen
NAN, INF = float("nan"), float("inf")


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
        augment=AugmentConfig(crop=24, resize=24, recolour=0.5, rotate=5.0),
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


def _last_epoch(out):
    return max((int(p.stem[-4:]) for p in out.glob("checkpoint_*.pth")), default=0)


def test_killed_and_resumed_is_bit_for_bit_the_same(config, tmp_path, capfd):
    config = replace(config, epochs=EPOCHS)
    whole = run(replace(config, out=str(tmp_path / "whole")))
    out = tmp_path / "killed"
    flags = f"""
        --data {config.data} --out {out} --arch {config.arch} --device cpu --workers 1
        --epochs {EPOCHS} --batch-size 20 --dim 16 --pred-dim 4 --knn-every 2 --knn-images 40
        --augment.crop 24 --augment.resize 24 --augment.recolour 0.5 --augment.rotate 5
    """
    assert "resuming" not in capfd.readouterr().err
    done = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-m", "pretrain", *flags.split()])
        deadline = time.monotonic() + 120
        while _last_epoch(out) == done and process.poll() is None and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        resumed = f"resuming {out} after epoch {done} of {EPOCHS}"
        assert (resumed in capfd.readouterr().err) == (done > 0)
        assert done < _last_epoch(out) < EPOCHS
        done = _last_epoch(out)
    last = run(replace(config, out=str(out)))  # 0 workers instead of 1
    assert f"resuming {out} after epoch {done} of {EPOCHS}" in capfd.readouterr().err
    assert last.name == whole.name == f"checkpoint_{EPOCHS:04d}.pth"
    a, b = _weights(whole), _weights(last)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert _monitor(out) == _monitor(tmp_path / "whole")


def test_a_monitor_file_left_behind_its_checkpoint_is_caught_up(config, tmp_path):
    run(config)
    monitor = tmp_path / "run/monitor.jsonl"
    whole = monitor.read_text()
    monitor.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    run(config)
    assert monitor.read_text() == whole


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


WRONG = {
    "epochs": [0, -1],
    "batch_size": [1, 0],
    "base_lr": [0.0, -0.1, NAN, INF],
    "warmup_epochs": [-1, 4],
    "momentum": [-0.1, 1.0, NAN],
    "weight_decay": [-1e-4, NAN, INF],
    "dim": [0],
    "hidden_dim": [-1],
    "pred_dim": [0],
    "knn_every": [-1],
    "knn_images": [0],
    "accumulate": [0],
    "log_every": [0],
    "checkpoint_every": [0],
    "collapse_steps": [0],
    "seed": [-1],
    "augment.crop": [7],
    "augment.resize": [23],
    "augment.flip": [-0.1, 1.1],
    "augment.jitter_p": [80.0],
    "augment.gray": [NAN],
    "augment.blur": [1.5],
    "augment.recolour": [-1.0],
    "augment.pad": [-0.1],
    "augment.rotate": [-5.0, 181.0],
    "augment.recolour_power": [-1.0],
    "augment.tone": [-0.1],
    "augment.noise": [INF],
    "augment.scale": [(0.0, 1.0), (0.5, 0.2), (0.2, 1.1), (NAN, 1.0)],
    "augment.ratio": [(0.0, 1.0), (2.0, 1.0), (1.0, INF)],
    "augment.sigma": [(0.0, 1.0), (2.0, 0.1)],
    "augment.jitter": [(1.1, 0.4, 0.4, 0.1), (0.4, 0.4, -0.1, 0.1), (0.4, 0.4, 0.4, 0.6)],
}


def _with(config, flag, value):
    if flag.startswith("augment."):
        return replace(config, augment=replace(config.augment, **{flag[8:]: value}))
    return replace(config, **{flag: value})


@pytest.mark.parametrize(("flag", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_a_number_that_cannot_be_meant_is_refused_by_its_flag(config, flag, value):
    wrong = replace(_with(config, flag, value), data="nowhere")  # settings come before the data
    with pytest.raises(UserError, match=rf"^--{re.escape(flag)} is .*; it must be "):
        run(wrong)


def test_numbers_at_the_edge_of_their_range_are_not_refused(config):
    for flag, value in [
        ("epochs", 1),
        ("batch_size", 2),
        ("base_lr", 1e20),
        ("warmup_epochs", 3),
        ("momentum", 0.0),
        ("weight_decay", 0.0),
        ("seed", 0),
        ("knn_images", 1),
        ("augment.flip", 0.0),
        ("augment.recolour", 1.0),
        ("augment.rotate", 180.0),
        ("augment.scale", (1.0, 1.0)),
        ("augment.jitter", (1.0, 1.0, 1.0, 0.5)),
    ]:
        check_config(_with(config, flag, value))
    unused = replace(config.augment, crop=32)  # larger than resize, which the monitor alone reads
    check_config(replace(config, knn_every=0, knn_images=0, augment=unused))
    verb = VERBS["pretrain"]
    for preset in verb.preset_files():
        check_config(make_config(verb, {"data": "", "preset": preset}))


def test_a_loss_that_is_not_finite_stops_the_run(config):
    with pytest.raises(UserError, match="the loss is nan in epoch"):
        run(replace(config, base_lr=1e20, method="supervised"))


@pytest.mark.gpu
def test_gpu_run(config):
    path = run(replace(config, device="cuda", bf16=True))
    assert all(torch.isfinite(v.float()).all() for v in _weights(path).values())
