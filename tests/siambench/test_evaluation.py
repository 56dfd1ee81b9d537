"""What every evaluation shares: skipping, keys, overrides; on the kNN benchmark."""

from dataclasses import replace

import pytest
import torch

from eval_detection.config import DetectConfig
from eval_linear.config import KnnConfig, LinearConfig
from eval_linear.knn import BENCHMARK, run
from siambench import device
from siambench.backbone import read_backbone, weights_digest
from siambench.config import overridden, protocol_of
from siambench.errors import UserError
from siambench.evaluation import run_evaluation
from siambench.files import atomic_path
from siambench.record import Metric, read_record


@pytest.fixture
def config(scenes, backbone_file, tmp_path):
    return KnnConfig(
        backbone=str(backbone_file),
        data=str(scenes / "imagenet"),
        out=str(tmp_path),
        k=[5],
        temperature=[0.07],
        resize=32,
        crop=32,
        device="cpu",
        workers=0,
    )


def test_recorded_once_and_again_when_protocol_or_data_change(config, scenes, tmp_path, capsys):
    (first,) = run(config)
    files = list((tmp_path / "records").iterdir())
    (again,) = run(config)
    assert again == first
    assert "already recorded" in capsys.readouterr().err
    assert list((tmp_path / "records").iterdir()) == files
    run(replace(config, k=[3]))
    assert len(list((tmp_path / "records").iterdir())) == 2
    run(replace(config, workers=1, device="auto"))
    assert len(list((tmp_path / "records").iterdir())) == 2
    run(replace(config, trials=3))  # nothing in kNN is random: one trial is all
    (other,) = run(replace(config, seed=1))  # and any seed is the same
    assert other == first
    assert len(list((tmp_path / "records").iterdir())) == 2
    (named,) = run(replace(config, name="ours"))  # the same weights, another row
    assert named.backbone == first.backbone | {"name": "ours"}
    assert len(list((tmp_path / "records").iterdir())) == 3


def test_a_checkpoint_is_evaluated_as_the_backbone_it_holds(config, backbone_file, tmp_path):
    """Any source that conversion reads; tied to its weights, under its own name."""
    state, meta = read_backbone(backbone_file)
    wrapped = {f"module.encoder_q.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 7, "state_dict": wrapped}, tmp_path / "moco_0007.pth.tar")
    (of_file,) = run(config)
    (direct,) = run(replace(config, backbone=str(tmp_path / "moco_0007.pth.tar")))
    assert direct.metrics == of_file.metrics
    assert direct.backbone == {
        "name": "moco_0007",
        "sha256": weights_digest(state),
        "arch": meta.arch,
        "method": "MoCo",
        "epochs": 7,
    }
    assert (tmp_path / "records" / f"{direct.stem}.json").is_file()


def test_overrides_are_the_settings_that_are_not_the_presets():
    common = {"backbone": "b", "data": "d"}
    assert overridden(KnnConfig(**common, preset="in1k-knn"), "knn") == []
    assert overridden(KnnConfig(**common, preset="in1k-knn", k=[20], crop=32), "knn") == [
        "k",
        "crop",
    ]
    assert overridden(KnnConfig(**common, preset="in1k-knn", seed=5, workers=3), "knn") == []
    assert overridden(LinearConfig(**common, batch_size=64), "linear") == ["batch_size"]
    preset = DetectConfig(**common, preset="voc0712-frcnn-c4-24k")
    assert overridden(preset, "detect") == []


def test_the_protocol_is_what_defines_the_result(config):
    protocol = {"k", "temperature", "resize", "crop", "skip_bad", "precision", "storage"}
    assert set(protocol_of(config)) == protocol


def test_what_does_nothing_is_not_in_the_protocol():
    """Two backbones that differ in an idle flag share a table."""
    common = {"backbone": "b", "data": "d"}
    short, views = LinearConfig(**common), LinearConfig(**common, views=2)
    assert protocol_of(replace(short, flip=False, min_scale=0.5)) == protocol_of(short)
    assert protocol_of(replace(views, flip=False)) != protocol_of(views)
    online = LinearConfig(**common, road="online", base_lr=1.0)
    assert protocol_of(replace(online, storage="float32", holdout=0.3)) == protocol_of(online)
    assert protocol_of(replace(online, flip=False)) != protocol_of(online)
    assert protocol_of(replace(short, holdout=0.3)) != protocol_of(
        short
    )  # ten rates to choose from
    step = replace(online, schedule="step", milestones=[3])
    assert protocol_of(replace(step, gamma=0.5)) != protocol_of(step)
    assert overridden(replace(short, flip=False, epochs=3), "linear") == ["epochs"]


def test_refused_before_any_work(config, tmp_path):
    with pytest.raises(UserError, match="--trials is 0; it must be at least 1"):
        run(replace(config, trials=0))
    with pytest.raises(UserError, match="--seed is -1; it must be at least 0"):
        run(replace(config, seed=-1))
    with pytest.raises(UserError, match="below 2\\^63"):
        run(replace(config, seed=10**30))
    with pytest.raises(UserError, match="device 'gpu' is unknown"):
        run(replace(config, device="gpu"))
    with pytest.raises(UserError, match="device 'meta' is not supported"):
        run(replace(config, device="meta"))
    with pytest.raises(UserError, match="knn has no preset 'nope'"):
        run(replace(config, preset="nope"))
    with pytest.raises(UserError, match=r"checkpoint: .* does not exist"):
        run(replace(config, backbone=str(tmp_path / "none.safetensors")))
    assert not (tmp_path / "records").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--out: folder .*file cannot be written to"):
        run(replace(config, out=str(tmp_path / "file")))


@pytest.mark.parametrize(
    ("available", "asked", "processes", "threads"),
    [(1, -1, 0, 1), (2, -1, 1, 1), (8, -1, 2, 6), (8, 0, 0, 8), (8, 5, 5, 3), (2, 4, 4, 1)],
)
def test_each_core_has_one_owner(monkeypatch, available, asked, processes, threads):
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "cores", lambda: available)
    monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        assert device.share_cores(asked, torch.device("cpu")) == processes
        assert torch.get_num_threads() == threads
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        device.share_cores(-1, torch.device("cpu"))
        assert torch.get_num_threads() == threads, "the user's number was overridden"
    finally:
        torch.set_num_threads(before)


def test_a_gpu_leaves_the_cores_to_the_loader(monkeypatch):
    monkeypatch.setattr(device, "cores", lambda: 16)
    assert device.share_cores(-1, torch.device("cuda")) == 16
    assert device.share_cores(3, torch.device("cuda")) == 3


def test_the_cache_lies_where_it_is_told(config, tmp_path, monkeypatch):
    """Two run folders share one; ``.`` is a folder like any other."""
    monkeypatch.chdir(tmp_path)
    run(replace(config, cache=".", out="one"))
    run(replace(config, cache=".", out="two"))
    assert len(list(tmp_path.glob("*-avgpool-*"))) == 2
    assert not list(tmp_path.glob("*/features"))


def test_a_record_under_another_ones_name_is_not_taken(config, tmp_path, capsys):
    run(config)
    (mine,) = (tmp_path / "records").iterdir()
    run(replace(config, k=[1]))
    (other,) = set((tmp_path / "records").iterdir()) - {mine}
    wrong = other.read_bytes()
    right = mine.read_bytes()
    mine.write_bytes(wrong)
    (again,) = run(config)
    assert "is the record of another evaluation" in capsys.readouterr().err
    assert {m.params["k"] for m in again.metrics} == {5}
    assert again.metrics == read_record_bytes(tmp_path, right).metrics


def read_record_bytes(folder, content):
    path = folder / "copy.json"
    path.write_bytes(content)
    return read_record(path)


def test_the_checkpoint_outlives_the_evaluation_until_the_record_is_written(config, tmp_path):
    def evaluate(backbone, data, config, job):
        with atomic_path(job.folder / "checkpoint.pth") as temporary:
            temporary.write_bytes(b"x")
        seen.append(list(job.folder.iterdir()))
        return [Metric("top1", value)]

    seen = []
    benchmark = replace(BENCHMARK, evaluate=evaluate)
    value = float("nan")
    with pytest.raises(ValueError, match="top1 is nan"):  # no record: the checkpoint stays
        run_evaluation(benchmark, config)
    assert seen[0][0].exists()
    value = 1.0
    run_evaluation(benchmark, config)
    assert not seen[0][0].exists()
