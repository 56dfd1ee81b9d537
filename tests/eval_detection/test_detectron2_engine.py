"""Runs with the real detectron2, where it is installed: `pytest -m detectron2`."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2_runs import COCO, SHORT, config_of, job_folder, job_in, lines
from pycocotools import mask as rle_tools

from eval_detection.engines import engine_of
from eval_detection.evaluate import open_data, run
from siambench.checkpoints.source import load_backbone
from siambench.errors import UserError

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def coco_run(scenes: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("coco")
    config = config_of(scenes / "coco", backbone_file, out, **COCO)
    return config, run(config)[0], out


@pytest.fixture(scope="module")
def voc_run(scenes: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("voc")
    config = config_of(scenes, backbone_file, out)
    return config, run(config)[0], out


def test_coco_numbers_are_detectron2s_own(coco_run) -> None:
    _, record, out = coco_run
    theirs = json.loads((job_folder(out) / "detectron2.json").read_text())
    kinds = [f"{kind}_{name}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75")]
    assert list(theirs) == kinds
    for name, value in theirs.items():
        assert record.metric(name, rule="101-point") == pytest.approx(value, abs=0.01)
    assert theirs["box_AP50"] > 0
    assert record.engine == "detectron2"


def test_what_a_run_leaves(coco_run, voc_run) -> None:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    for (config, record, out), names in (
        (coco_run, {"rpn_cls", "rpn_box", "cls", "box", "mask"}),
        (voc_run, {"rpn_cls", "rpn_box", "cls", "box"}),
    ):
        folder = job_folder(out)
        assert not list(folder.glob("checkpoint*"))
        curve = lines(out)
        assert [line["iteration"] for line in curve] == [20, 40, 60]
        assert [line["lr"] for line in curve] == pytest.approx([0.05, 0.05, 0.005])
        assert all(names < set(line) and np.isfinite(list(line.values())).all() for line in curve)
        assert np.isfinite([m.value for m in record.metrics]).all()
        cfg = get_cfg()
        cfg.merge_from_file(str(folder / "detectron2.yaml"))
        assert config.mask == cfg.MODEL.MASK_ON
        model = build_model(cfg)
        rest = DetectionCheckpointer(model).load(str(folder / "detector.pth"))
        assert rest == {}  # the file holds nothing but weights
        saved = torch.load(folder / "detector.pth", weights_only=True)["model"]
        state = model.state_dict()
        assert {k for k in state if "pixel_" not in k} <= set(saved)
        assert all(torch.equal(v, saved[k]) for k, v in state.items() if k in saved)


def test_voc_numbers_are_detectron2s_own(
    scenes: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of detections that its evaluator's rounding (scores to 0.001, corners to 0.1) leaves as they are."""
    import eval_detection.evaluate
    from eval_detection.detectron2_engine.evaluators import find

    class Made(torch.nn.Module):
        """Finds the truth, a little beside it, and things that are not there."""

        def __init__(self, samples) -> None:
            super().__init__()
            self.samples = {s.id: s for s in samples}
            self.rng = np.random.default_rng(0)
            self.scores = iter(self.rng.permutation(999) + 1)

        def forward(self, images):
            from detectron2.structures import Boxes, Instances

            sample = self.samples[images[0]["image_id"]]
            boxes = np.concatenate((sample.boxes, sample.boxes[:1] + 7))
            boxes = np.round(2 * (boxes + self.rng.normal(0, 0.7, boxes.shape))) / 2
            found = Instances((sample.height, sample.width))
            found.pred_boxes = Boxes(torch.from_numpy(boxes).float())
            found.scores = torch.tensor([next(self.scores) / 1000 for _ in boxes])
            found.pred_classes = torch.from_numpy(np.append(sample.labels, 0))
            return [{"instances": found}]

    def detect(backbone, data, config, job):
        from eval_detection.detectron2_engine.engine import configuration

        cfg = configuration(backbone.meta, data, config, job)
        return find(Made(data.test), data, config, cfg, job)

    monkeypatch.setattr(eval_detection.evaluate, "detect", detect)
    record = run(config_of(scenes, backbone_file, tmp_path))[0]
    theirs = json.loads((job_folder(tmp_path) / "detectron2.json").read_text())
    assert list(theirs) == ["box_AP", "box_AP50", "box_AP75"]
    for name, value in theirs.items():
        assert 5 < value < 95
        assert record.metric(name, rule="11-point") == pytest.approx(value, abs=0.01)


def test_the_seed_decides(coco_run, tmp_path: Path) -> None:
    from eval_detection.detectron2_engine.engine import detect

    config = replace(coco_run[0], **SHORT)
    data, backbone = open_data(config), load_backbone(config.backbone)
    one, same, other = (
        detect(backbone, data, config, job_in(tmp_path / name, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same != other


def test_a_killed_run_goes_on_from_its_checkpoint(
    voc_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import eval_detection.detectron2_engine.engine as engine
    from eval_detection.detectron2_engine.train import Run

    config, _, whole = voc_run
    config = replace(config, out=str(tmp_path), checkpoint_every=25)
    step, steps = Run.run_step, []

    def killed(self):
        if self.iter == 45:
            raise KeyboardInterrupt
        steps.append(self.iter)
        step(self)

    monkeypatch.setattr(Run, "run_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    state = torch.load(job_folder(tmp_path) / "checkpoint.pth", weights_only=True)
    assert state["trainer"]["iteration"] == 24
    assert state["trainer"]["step"]["optimizer"]["state"]  # the momentum

    def resumed(self):
        steps.append(self.iter)
        if steps.count(25) == 2 and self.iter == 25:  # what goes on is what was saved
            for name, tensor in self.step.model.state_dict().items():
                torch.testing.assert_close(tensor, state["model"][name], rtol=0, atol=0)
        step(self)

    def killed_at_the_test(*_):
        raise KeyboardInterrupt

    find = engine.find
    monkeypatch.setattr(Run, "run_step", resumed)
    monkeypatch.setattr(engine, "find", killed_at_the_test)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert steps == [*range(45), *range(25, 60)]
    assert "going on from iteration 25" in capsys.readouterr().err
    monkeypatch.setattr(engine, "find", find)
    record = run(config)[0]
    assert len(steps) == 80  # a run killed during the test does not train again
    assert np.isfinite(record.metric("box_AP", rule="11-point"))
    curve, expected = lines(tmp_path), lines(whole)
    assert [line["iteration"] for line in curve] == [20, 40, 60]
    assert curve[0] == expected[0]
    assert [line["lr"] for line in curve] == pytest.approx([line["lr"] for line in expected])


def test_asked_to_stop_it_finishes_the_step_and_saves(
    voc_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from eval_detection.detectron2_engine.train import Run

    config = replace(voc_run[0], out=str(tmp_path), **SHORT)
    step, steps = Run.run_step, []

    def asked(self):
        steps.append(self.iter)
        if self.iter == 1 and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    monkeypatch.setattr(Run, "run_step", asked)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert "SIGTERM" in (said := capsys.readouterr().err)
    assert "iteration 2 is saved" in said
    state = torch.load(job_folder(tmp_path) / "checkpoint.pth", weights_only=True)
    assert state["trainer"]["iteration"] == 1
    assert not list((tmp_path / "records").glob("*"))
    (record,) = run(config)
    assert steps == [0, 1, 2, 3]
    assert np.isfinite(record.metric("box_AP", rule="11-point"))


def test_a_damaged_checkpoint_is_passed_over(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from eval_detection.detectron2_engine.engine import detect

    config = config_of(scenes, backbone_file, tmp_path, **SHORT)
    data, backbone = open_data(config), load_backbone(str(backbone_file))
    results = []
    for name, content in (("a", b""), ("b", b"PK damaged"), ("c", None)):
        folder = tmp_path / name
        folder.mkdir()
        if content is not None:
            (folder / "checkpoint.pth").write_bytes(content)
        results.append(detect(backbone, data, config, job_in(folder)))
    assert results[0] == results[1] == results[2]
    assert capsys.readouterr().err.count("training starts anew") == 2


def test_what_cannot_run_is_refused_in_one_line(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    from eval_detection.detectron2_engine.engine import detect

    config = config_of(scenes, backbone_file, tmp_path, **SHORT)
    data, backbone = open_data(config), load_backbone(str(backbone_file))
    with pytest.raises(UserError, match="needs a GPU"):
        engine_of(replace(config, bf16=True))
    with pytest.raises(UserError, match=r"diverged.*Lower lr \(1e\+30"):
        detect(backbone, data, replace(config, lr=1e30), job_in(tmp_path))


def test_rates_are_searched_and_one_that_diverges_is_out(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    changes = {**COCO, **SHORT, "lr": [0.02, 1e30], "score_threshold": 0.0}
    record = run(config_of(scenes / "coco", backbone_file, tmp_path, **changes))[0]
    assert record.metric("lr") == 0.02
    assert record.metric("box_AP_holdout", lr=0.02) >= 0
    with pytest.raises(KeyError):
        record.metric("box_AP_holdout", lr=1e30)
    (search,) = (tmp_path / "jobs").glob("search-*/lr-*/detectron2.json")
    assert json.loads(search.read_text()) == {}  # no official evaluation of a held-out part
    assert json.loads((job_folder(tmp_path) / "detectron2.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "fpn", "anchor_sizes": [8, 16, 32, 64, 128], "freeze_at": 3, **COCO},
        {"freeze_at": 4, "extra_norm": False, "workers": 1},
        {"precise_bn_iters": 0, "flip": False, "max_iter": 1, "steps": [], "warmup_iters": 0},
    ],
    ids=["fpn", "frozen", "shortest"],
)
def test_other_networks_and_frozen_stages(
    changes, scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    from eval_detection.detectron2_engine.weights import to_detectron2

    data = scenes / "coco" if "format" in changes else scenes
    record = run(config_of(data, backbone_file, tmp_path, **SHORT | changes))[0]
    assert np.isfinite([m.value for m in record.metrics]).all()
    saved = torch.load(job_folder(tmp_path) / "detector.pth", weights_only=True)["model"]
    frozen = ["stem", "res2", "res3", "res4", "res5"][: changes.get("freeze_at", 0)]
    for name, array in to_detectron2(load_backbone(str(backbone_file)).resnet.state_dict()).items():
        (place,) = (k for k in saved if k.endswith("." + name)) if "num_b" not in name else (None,)
        if place and "running" not in name:
            same = torch.equal(saved[place], torch.from_numpy(array))
            assert same == (name.split(".")[0] in frozen), name


def test_bitmap_masks_are_read_as_polygons_are(scenes: Path, backbone_file: Path) -> None:
    from detectron2.data import DatasetMapper

    from eval_detection.detectron2_engine.data import mask_format, record
    from eval_detection.detectron2_engine.engine import configuration
    from eval_detection.masks import fill

    config = config_of(scenes / "coco", backbone_file, Path(), **COCO, flip=False)
    data = open_data(config)
    assert mask_format(data.train) == "polygon"
    sample = next(s for s in data.train if len(s.masks) > 1)
    filled = [fill(m, sample.height, sample.width) for m in sample.masks]
    mixed = replace(sample, masks=[filled[0], *sample.masks[1:]])
    assert mask_format([sample, mixed]) == "bitmask"
    job = job_in(Path("unused"))
    meta = load_backbone(str(backbone_file)).meta
    config = replace(config, min_size_train=[min(sample.height, sample.width)])
    cfg = configuration(meta, replace(data, train=[mixed]), config, job)
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    mapper = DatasetMapper(cfg, is_train=True)
    found = mapper(record(mixed))["instances"]
    np.testing.assert_array_equal(found.gt_masks.tensor.numpy(), np.stack(filled).astype(bool))
    np.testing.assert_allclose(found.gt_boxes.tensor.numpy(), sample.boxes, atol=1e-4)


def test_annotations_that_detectron2_cannot_read_cost_its_numbers_only(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(scenes / "VOCdevkit", tmp_path / "VOCdevkit")
    annotations = tmp_path / "VOCdevkit" / "VOC2007"
    name = (annotations / "ImageSets" / "Main" / "test.txt").read_text().split()[0]
    path = annotations / "Annotations" / f"{name}.xml"
    path.write_text(path.read_text().replace("</xmax>", ".0</xmax>"))
    run(config_of(tmp_path, backbone_file, tmp_path / "out", **SHORT))
    assert json.loads((job_folder(tmp_path / "out") / "detectron2.json").read_text()) == {}
    assert "VOC evaluator cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{}, {"network": "fpn", "anchor_sizes": [8, 16, 32, 64, 128], "pooler_resolution": 7}],
    ids=["c4", "fpn"],
)
def test_both_engines_find_the_same(
    changes, scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    """From the image files to the results, with a detector that the torchvision engine has trained."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from eval_detection.detectron2_engine.engine import configuration
    from eval_detection.detectron2_engine.evaluators import find

    changes = {**COCO, "engine": "torchvision", "detections_per_image": 100, **changes}
    config = config_of(scenes / "coco", backbone_file, tmp_path, **changes)
    run(config)
    folder = job_folder(tmp_path)
    ours = json.loads((folder / "predictions.json").read_text())
    data, job = open_data(config), job_in(tmp_path / "other")
    cfg = configuration(load_backbone(str(backbone_file)).meta, data, config, job)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(folder / "detector.pth"))
    saved = torch.load(folder / "detector.pth", weights_only=True)["model"]
    assert {k for k in model.state_dict() if "pixel_" not in k} == set(saved)
    theirs = find(model, data, config, cfg, job)
    sure = [row for row in ours if row["score"] > config.score_threshold + 1e-3]
    assert len(sure) > 20
    for rows, others in ((sure, theirs), ([r for r in theirs if r["score"] > 0.051], ours)):
        for row in rows:
            alike = [o for o in others if all(o[k] == row[k] for k in ("image_id", "category_id"))]
            boxes = [[o["bbox"] for o in part] for part in (alike, [row])]
            overlap = rle_tools.iou(*(np.array(b) for b in boxes), [False])[:, 0]
            best = int(overlap.argmax())
            assert overlap[best] > 0.999
            assert alike[best]["score"] == pytest.approx(row["score"], abs=1e-3)
            mask = rle_tools.iou([alike[best]["segmentation"]], [row["segmentation"]], [False])
            assert mask > 0.99
