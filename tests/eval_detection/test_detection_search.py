"""Schedules scaled to the batch, and the rate that a held-out part of the training set chooses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eval_detection.search as search
from eval_detection import VERBS
from eval_detection.config import DetectConfig, Schedule
from eval_detection.evaluate import open_data, run
from siambench.config import make_config
from siambench.errors import Diverged, UserError

TINY = {
    "engine": "torchvision",
    "train_sets": ["2007/trainval"],
    "batch_size": 2,
    "reference_batch": 2,
    "max_iter": 3,
    "steps": [2],
    "warmup_iters": 1,
    "min_size_train": [64],
    "min_size_test": 64,
    "anchor_sizes": [16, 32],
    "rpn_batch_per_image": 32,
    "rpn_pre_nms_train": 100,
    "rpn_post_nms_train": 50,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_test": 10,
    "rois_per_image": 8,
    "pooler_resolution": 4,
    "precise_bn_iters": 0,
    "workers": 0,
    "device": "cpu",
}


def config_of(scenes: Path, backbone: Path, out: Path, **changes) -> DetectConfig:
    return DetectConfig(
        backbone=str(backbone), data=str(scenes), out=str(out), **{**TINY, **changes}
    )


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (16, Schedule(0.02, 24_000, (18_000, 22_000), 100)),
        (8, Schedule(0.01, 48_000, (36_000, 44_000), 200)),  # half the rate, twice as long
        (64, Schedule(0.08, 6_000, (4_500, 5_500), 25)),
        (2, Schedule(0.0025, 192_000, (144_000, 176_000), 800)),
    ],
)
def test_batch_scales_rate_and_schedule(batch: int, expected: Schedule) -> None:
    verb = VERBS["detect"]
    values = {"backbone": "", "data": "", "preset": "voc0712-frcnn-c4-24k", "batch_size": batch}
    schedule = make_config(verb, values).schedule()
    assert schedule.lr == pytest.approx(expected.lr)
    assert replace(schedule, lr=expected.lr) == expected


def test_several_rates_have_no_schedule() -> None:
    with pytest.raises(ValueError, match="too many values"):
        DetectConfig(backbone="", data="", lr=[0.1, 0.2]).schedule()


def test_held_out_images_are_not_trained_on(scenes: Path) -> None:
    data = open_data(config_of(scenes, Path(), Path()))
    parts = search.hold_out(data, 0.25, seed=3)
    held, kept = {s.id for s in parts.test}, {s.id for s in parts.train}
    assert not held & kept
    assert held | kept == {s.id for s in data.train}
    assert len(held) == round(0.25 * len(data.train))
    assert [s.id for s in search.hold_out(data, 0.25, seed=3).test] == [s.id for s in parts.test]
    assert {s.id for s in search.hold_out(data, 0.25, seed=4).test} != held
    one = replace(data, train=data.train[:1])
    with pytest.raises(UserError, match="one training image is too few"):
        search.hold_out(one, 0.25, seed=3)


def test_the_best_rate_on_held_out_images_is_kept_and_tried_once(
    scenes: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are recomputed here from the rule: the mean AP of made detections is known."""
    rates = [0.01, 0.02, 0.04]
    config = config_of(scenes, backbone_file, tmp_path, lr=rates, trials=2, holdout=0.3)
    data = open_data(config)
    trained: list[tuple[float, int, int]] = []

    def perfect_for(rate, data, share):
        """The truth of the first ``share`` of the test images, and nothing in the others."""
        results = []
        for sample in data.test[: round(share * len(data.test))]:
            for (x0, y0, x1, y1), label in zip(sample.boxes.tolist(), sample.labels, strict=True):
                box = [x0, y0, x1 - x0, y1 - y0]
                category = data.category_ids[label]
                results.append(
                    {"image_id": sample.id, "category_id": category, "bbox": box, "score": 0.9}
                )
        return results

    def detect(backbone, data, config, job):
        (rate,) = config.rates
        trained.append((rate, job.trial, job.seed))
        if rate == 0.04:
            raise Diverged("the loss is not finite")
        return perfect_for(rate, data, {0.01: 0.2, 0.02: 1.0}[rate])

    monkeypatch.setattr(search, "detect", detect)
    monkeypatch.setattr("eval_detection.evaluate.detect", detect)
    records = run(config)
    assert trained == [(0.01, 0, 0), (0.02, 0, 0), (0.04, 0, 0), (0.02, 0, 0), (0.02, 1, 1)]
    for record in records:
        assert record.metric("lr") == 0.02
        assert record.metric("box_AP_holdout", lr=0.02) == pytest.approx(100)
        assert record.metric("box_AP_holdout", lr=0.01) < 60
        with pytest.raises(KeyError):
            record.metric("box_AP_holdout", lr=0.04)
        assert record.protocol["lr"] == rates
        assert "lr" in record.overrides
    assert len(data.test) == records[0].dataset.counts["test"]


def test_when_every_rate_diverges(
    scenes: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(*_):
        raise Diverged("the loss is not finite")

    monkeypatch.setattr(search, "detect", detect)
    config = config_of(scenes, backbone_file, tmp_path, lr=[1e3, 1e4])
    with pytest.raises(UserError, match="diverged at every rate"):
        run(config)


def test_search_with_the_engine_itself(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    """Real training: the record's test scores are those of a run with the chosen rate alone."""
    config = config_of(scenes, backbone_file, tmp_path / "a", lr=[0.02, 1e30], holdout=0.2)
    record = run(config)[0]
    assert record.metric("lr") == 0.02
    assert 0 <= record.metric("box_AP_holdout", lr=0.02) <= 100
    alone = run(config_of(scenes, backbone_file, tmp_path / "b", lr=0.02))[0]
    for rule in ("11-point", "all-points"):
        assert record.metric("box_AP", rule=rule) == alone.metric("box_AP", rule=rule)
    scores = sorted((tmp_path / "a" / "jobs").glob("search-*/lr-*/scores.json"))
    assert [json.loads(p.read_text()) == {} for p in scores] == [False, True]
    assert not list((tmp_path / "a" / "jobs").glob("search-*/lr-*/checkpoint*"))


def test_coco_is_held_out_from_its_training_json(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    changes = {"format": "coco", "mask": True, "train_sets": ["train2017"]}
    changes |= {"test_set": "val2017", "lr": [0.01, 0.02], "holdout": 0.2, "score_threshold": 0.0}
    record = run(config_of(scenes / "coco", backbone_file, tmp_path, **changes))[0]
    names = {m.name for m in record.metrics if m.split == "holdout"}
    assert names == {"box_AP_holdout", "mask_AP_holdout"}
    found = list((tmp_path / "jobs").glob("search-*/lr-*/scores.json"))
    assert len(found) == 2
    assert np.isfinite([m.value for m in record.metrics]).all()
