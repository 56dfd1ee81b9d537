"""A run as the user sees it: monitors, resume after SIGKILL bit for bit, and clear refusals."""

import functools
import itertools
import json
import math
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import identical, lines, weights
from torch.utils.data import default_collate

from pretrain import VERBS
from pretrain.checkpoint import checkpoints, seal
from pretrain.config import PretrainConfig, check_config
from pretrain.loop import gradients, run
from pretrain.methods import methods
from pretrain.methods.method import HEAD_FIELDS
from pretrain.methods.supervised import Supervised
from pretrain.monitors import KnnMonitor
from pretrain.run import lay_out, open_data
from pretrain.views import Views, finish
from pretrain.watch import Watch
from siambench.config import make_config
from siambench.data.images import read_image_folder
from siambench.distributed import World
from siambench.errors import UserError
from siambench.progress import Bar
from siambench.resnet import build_resnet

NAN, INF = float("nan"), float("inf")


def test_monitor_lines_and_a_second_run_that_does_nothing(config, tmp_path):
    path = run(config)
    before = path.stat().st_mtime_ns
    found = lines(config.out, "monitor.jsonl")
    assert [line["epoch"] for line in found] == [1, 2, 3, 4]
    assert [line["step"] for line in found] == [5, 10, 15, 20]
    assert [line["knn_top1"] is not None for line in found] == [False, True, False, True]
    assert all(line["std_target"] == 0.25 and 0 < line["std"] < 0.5 for line in found)
    assert run(config) == path
    assert path.stat().st_mtime_ns == before
    assert sorted(p.name for p in (tmp_path / "run").glob("*.pth")) == [
        "checkpoint_0003.pth",
        "checkpoint_0004.pth",
    ]


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
    "milestones": [[0], [2, 1], [1, 1], [4]],
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
    "seed": [-1, 2**64],
    "workers": [-2],
    "augment.crop": [7],
    "augment.small_crop": [7],
    "augment.small_views": [-1],
    "augment.small_scale": [(0.0, 0.1), (0.05, 1.1)],
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


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(config, monkeypatch):
    """The step is exact though the loss is read every 20; the checkpoint before it stays."""
    config = replace(
        config, method="supervised", dim=2048, pred_dim=512, checkpoint_every=2, knn_every=0
    )
    forward, count = Supervised.forward, iter(range(1, 100))

    def diverging(self, views, labels):
        loss, z = forward(self, views, labels)
        return (loss * float("nan") if next(count) == 8 else loss), z

    monkeypatch.setattr(Supervised, "forward", diverging)
    last = Path(config.out) / "checkpoint_0001_000001.pth"
    expected = (
        rf"^the loss is nan at step 8 \(epoch 2\); {last} is the last finite checkpoint; try a"
    )
    with pytest.raises(UserError, match=expected):
        run(config)
    assert checkpoints(Path(config.out))[0] == last


def test_weights_that_are_not_finite_are_not_saved(config, tmp_path):
    config = replace(
        config,
        method="supervised",
        dim=2048,
        pred_dim=512,
        checkpoint_every=1,
        base_lr=1e38,
        knn_every=0,
    )
    with pytest.raises(UserError, match=r"is(n't| not| nan).* at step \d+ \(epoch 1\)"):
        run(config)
    for path in checkpoints(tmp_path / "run"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(v.isfinite().all() for v in state.values())


def test_step_lines(config):
    run(replace(config, fix_pred_lr=True, log_every=2, knn_every=0))
    found = lines(config.out, "steps.jsonl")
    assert [x["step"] for x in found] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert [x["epoch"] for x in found] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    lr = 0.05 * 20 / 256
    assert {x["predictor_lr"] for x in found} == {lr}
    assert found[0]["lr"] == lr
    assert found[-1]["lr"] == pytest.approx(lr * (1 + math.cos(math.pi * 3 / 4)) / 2)
    epochs = lines(config.out, "monitor.jsonl")
    counts = np.diff([0, *(x["step"] for x in found)])
    for name in ("loss", "std"):  # means over the steps since the last line, and over the epoch
        sums = [x[name] * n for x, n in zip(found, counts, strict=True)]
        for epoch in range(4):
            mean = sum(sums[3 * epoch : 3 * epoch + 3]) / 5
            assert epochs[epoch][name] == pytest.approx(mean)
    clocks = json.loads((Path(config.out) / "steps.jsonl").read_text().splitlines()[-1])
    assert clocks["images_per_second"] > 0
    assert 0 <= clocks["data_wait"] <= 1


def test_a_collapse_is_said_once_after_the_stated_steps(config, capsys):
    config = replace(config, collapse_steps=3)
    Path(config.out).mkdir()
    watch = Watch(config, World(0, 1, torch.device("cpu")), 5, None)
    small, large = torch.tensor(0.024), torch.tensor(0.026)  # a tenth of 1/sqrt(16) is 0.025
    said = []
    for step, std in enumerate([small, small, large, small, small, small, small, small], 1):
        watch.add(torch.tensor(-1.0), std)
        watch.step_line(step, [0.1], Bar("", 100, 0))
        said.append((watch.has_collapsed, "has collapsed" in capsys.readouterr().err))
    assert [c for c, _ in said] == [False] * 5 + [True] * 3
    assert [s for _, s in said] == [False] * 5 + [True] + [False] * 2


def test_a_collapse_stops_the_run_if_asked(config, monkeypatch, capsys):
    monkeypatch.setattr("pretrain.loop.output_std", lambda z: z.new_tensor(0.001))
    config = replace(config, collapse_steps=7, log_every=2, knn_every=0)
    stops = replace(config, on_collapse="stop")
    for _ in range(2):  # started again, it does not go on a step and lose an older checkpoint
        with pytest.raises(UserError, match=r"stopped at step 8: .* for 8 steps; "):
            run(stops)
        kept = [p.name for p in checkpoints(Path(config.out))]
        assert kept == ["checkpoint_0001_000003.pth", "checkpoint_0001.pth"]
    path = run(config)  # and goes on under warn
    assert path.name == "checkpoint_0004.pth"
    assert "resuming" in capsys.readouterr().err


def test_lines_do_not_count_what_another_process_did_nor_pauses(config, monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr("pretrain.watch.time.monotonic", lambda: float(next(now)))
    Path(config.out).mkdir()
    shown = Bar("", 100, 0)
    watch = Watch(config, World(0, 1, torch.device("cpu")), 5, None)
    for _ in range(2):
        watch.add(torch.tensor(-1.0), torch.tensor(0.2))
    watch.read(2)
    state = watch.state()
    watch = Watch(config, World(0, 1, torch.device("cpu")), 5, state)  # killed and started again
    watch.add(torch.tensor(-0.5), torch.tensor(0.2))
    with watch.paused():
        for _ in range(50):
            next(now)
    list(watch.waiting(iter([1, 2])))
    watch.step_line(3, [0.1], shown)
    line = json.loads((Path(config.out) / "steps.jsonl").read_text())
    assert line["loss"] == pytest.approx(-2.5 / 3)  # of all three steps
    assert shown.done == 1
    # One step in 8 ticks of the clock, the 51 of the pause left out; three batches were waited for.
    assert line["images_per_second"] == pytest.approx(20 / 8)
    assert line["data_wait"] == pytest.approx(3 / 8)


def test_how_closely_it_is_watched_may_change(config, capsys):
    run(replace(config, epochs=4, knn_every=2))
    state = torch.load(Path(config.out) / "checkpoint_0004.pth", weights_only=True)
    assert not {"knn_every", "log_every", "workers"} & state["recipe"].keys()
    run(replace(config, knn_every=1, log_every=7, checkpoint_every=3, on_collapse="stop"))
    with pytest.raises(UserError, match=r"was made with augment.blur = 0.5, not 0.4; give another"):
        run(replace(config, augment=replace(config.augment, blur=0.4)))


def test_a_setting_that_an_older_checkpoint_does_not_know_had_its_default(config):
    path = run(config)
    state = torch.load(path, weights_only=True)
    del state["recipe"]["similarity"]
    for checkpoint in checkpoints(path.parent):
        checkpoint.unlink()
    torch.save(state, path)
    seal(path)
    assert run(config) == path
    with pytest.raises(UserError, match="similarity = cosine, not cross_entropy"):
        run(replace(config, similarity="cross_entropy"))


def test_tensorboard_when_asked(config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(replace(config, tensorboard=True, log_every=5))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = lines(config.out, "steps.jsonl")
    assert [e.step for e in events.Scalars("loss")] == [x["step"] for x in found]
    np.testing.assert_allclose(
        [e.value for e in events.Scalars("loss")], [x["loss"] for x in found], rtol=1e-6
    )
    assert [e.step for e in events.Scalars("knn_top1")] == [10, 20]


def test_tensorboard_that_is_missing_is_refused_first(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tensorboard needs the tensorboard package: pip install"):
        run(replace(config, tensorboard=True, data="nowhere"))


def test_the_end_is_summed_up_in_a_line(config, capsys):
    path = run(config)
    said = capsys.readouterr().err
    assert re.search(
        r"pretrain simsiam: 4 epochs, 20 steps in \d+ s \(\d+ images/s\), loss -?0\.\d{4}, std "
        rf"[01]\.\d\d of 1/√16, kNN \d+\.\d %: {path}",
        said,
    )
    assert "batch 20, learning rate 0.05 x 20/256 = 0.00390625, 4 epochs of 5 steps" in said


def test_the_knn_monitor_in_the_background_is_the_one_in_turn(config, scenes, tmp_path):
    images = [read_image_folder(scenes / "imagenet", split) for split in ("train", "val")]
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    nets = [build_resnet("resnet10-w8") for _ in range(2)]
    turn, beside = (KnnMonitor(*images, config, cpu, 0, background=b) for b in (False, True))
    for monitor in (turn, beside):
        for epoch, net in enumerate(nets, 1):
            monitor.start(epoch, net)
            assert net.training
    unfinished = beside.state()
    beside.wait()
    expected = turn.finished()
    assert expected.keys() == {1, 2}
    assert beside.finished() == expected
    assert beside.finished() == {} == beside.state()
    # What was at work when the run was killed is measured again, on the weights of its epoch.
    assert unfinished
    again = KnnMonitor(*images, config, cpu, 0, background=True)
    again.resume(unfinished, build_resnet("resnet10-w8"))
    again.wait()
    assert again.finished() == {epoch: expected[epoch] for epoch in unfinished}


def test_a_last_accuracy_that_was_at_work_when_killed_comes_after(config, monkeypatch, tmp_path):
    """As beside a GPU: the last checkpoint is written before the last kNN accuracy is known."""
    whole = run(replace(config, out=str(tmp_path / "whole")))
    expected = lines(tmp_path / "whole", "monitor.jsonl")
    background = functools.partial(KnnMonitor, background=True)
    monkeypatch.setattr("pretrain.run.KnnMonitor", background)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KnnMonitor, "wait", killed)
        patch.setattr(KnnMonitor, "finished", lambda self: {})
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert [x["knn_top1"] for x in lines(config.out, "monitor.jsonl")] == [None] * 4
    path = run(config)
    assert lines(config.out, "monitor.jsonl") == expected
    assert identical(path, whole)
    assert torch.load(path, weights_only=True)["knn"] == {}


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["simsiam", "supervised"])
def test_gpu_run(config, method):
    config = replace(config, device="cuda", bf16=True, method=method, workers=1)
    path = run(config)
    assert all(torch.isfinite(v.float()).all() for v in weights(path).values())
    assert lines(config.out, "monitor.jsonl")[-1]["knn_top1"] is not None


@pytest.mark.gpu
@pytest.mark.parametrize("method", methods())
def test_a_step_does_not_wait_for_the_gpu(config, method):
    heads = {f.name: f.default for f in fields(PretrainConfig) if f.name in HEAD_FIELDS}
    options = {"mocov2": {"queue": 400, "bn_groups": 2}, "swav": {"frozen_steps": 2}}.get(
        method, {}
    )
    settings = replace(config, method=method, options=options, device="cuda", bf16=True, **heads)
    made = lay_out(settings, World(0, 1, torch.device("cuda", 0)), open_data(config))
    views = next(made.batches)
    made.batches = itertools.repeat(views)
    for mode in ("default", "error"):  # the first steps set things up
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for _ in range(3):
                made.method.before_step(made.step)
                made.watch.add(*gradients(made, made.method))
                made.method.before_update(made.step)
                made.optimizer.step()
                made.optimizer.zero_grad()
                made.step += 1
                made.method.after_update(made.step, made.total)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_batch_is_finished_without_waiting_for_the_gpu(scenes, config):
    images = read_image_folder(scenes / "imagenet", "train")
    views = Views(images, config.augment, "device", 2, 0)
    batch = {k: v.cuda() for k, v in default_collate([views[(0, i)] for i in range(8)]).items()}
    on_cpu = finish({k: v.cpu() for k, v in batch.items()}, config.augment, "device")
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = finish(batch, config.augment, "device")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(made, on_cpu, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=0)


def test_bf16_is_close_to_float32(config, tmp_path):
    """One step of the loop: the loss within bfloat16's three digits, gradients much alike."""
    made = {}
    for bf16 in (False, True):
        settings = replace(config, bf16=bf16, arch="resnet10-w16")
        made[bf16] = lay_out(settings, World(0, 1, torch.device("cpu")), open_data(settings))
    found = {bf16: gradients(run, run.method)[0].item() for bf16, run in made.items()}
    assert found[False] == pytest.approx(found[True], abs=0.02)
    assert found[False] != found[True]
    a, b = (
        torch.cat([p.grad.flatten() for p in made[bf16].method.parameters()])
        for bf16 in (False, True)
    )
    assert a.dtype == b.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9
