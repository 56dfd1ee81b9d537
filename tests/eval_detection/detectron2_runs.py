"""Small runs with detectron2, and what they leave."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from eval_detection.config import DetectConfig
from siambench.evaluation import Job

TINY = {
    "engine": "detectron2",
    "train_sets": ["2007/trainval"],
    "batch_size": 4,
    "reference_batch": 4,
    "lr": 0.05,
    "max_iter": 60,
    "steps": [50],
    "warmup_iters": 5,
    "min_size_train": [56, 64],
    "min_size_test": 64,
    "anchor_sizes": [16, 32],
    "rpn_batch_per_image": 64,
    "rpn_pre_nms_train": 200,
    "rpn_post_nms_train": 60,
    "rpn_pre_nms_test": 100,
    "rpn_post_nms_test": 20,
    "rois_per_image": 16,
    "pooler_resolution": 4,
    "precise_bn_iters": 5,
    "detections_per_image": 10,
    "workers": 0,
    "device": "cpu",
}
COCO = {"format": "coco", "mask": True, "train_sets": ["train2017"], "test_set": "val2017"}
SHORT = {"max_iter": 4, "steps": [3], "warmup_iters": 2, "precise_bn_iters": 1}


def config_of(data: Path, backbone: Path, out: Path, **changes) -> DetectConfig:
    return DetectConfig(backbone=str(backbone), data=str(data), out=str(out), **TINY | changes)


def job_folder(out: Path) -> Path:
    (folder,) = (out / "jobs").glob("detect-*")
    return folder


def lines(out: Path) -> list[dict]:
    text = (job_folder(out) / "curve.jsonl").read_text().splitlines()
    return [json.loads(line) for line in text]


def job_in(folder: Path, **changes) -> Job:
    job = Job(
        seed=3, trial=0, device=torch.device("cpu"), workers=0, folder=folder, key="", title=""
    )
    return replace(job, **changes)
