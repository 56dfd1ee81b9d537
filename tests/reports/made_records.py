"""Synthetic records and training curves, written as the evaluations write theirs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from siambench.files import digest_of
from siambench.record import DatasetInfo, Metric, Record, record_key, write_record

KS = [1, 2, 4, 8, 16, 32, 64, 96]


def linear(
    rng: np.random.Generator,
    layers: tuple[str, ...] = ("avgpool",),
    rates: tuple[float, ...] = (),
    decays: tuple[float, ...] = (0.0,),
    classes: int = 3,
    score: str = "top1",
) -> list[Metric]:
    """``rates`` makes a sweep; ``score`` is ``mAP`` where images have several labels."""
    found = []
    for layer in layers:
        of_layer = {"layer": layer}
        value = float(rng.uniform(40, 70))
        numbers = {score: value, f"{score}_ci_low": value - 2, f"{score}_ci_high": value + 3}
        if score == "top1":
            numbers |= {"top5": value + 20, "top1_mean_class": value - 1}
        if rates:
            numbers[f"{score}_test_chosen"] = value + 4
        found += [Metric(n, v, split="val", params=of_layer) for n, v in numbers.items()]
        per_class = "AP_class" if score == "mAP" else "top1_class"
        found += [
            Metric(per_class, float(rng.uniform(0, 99)), "%", "val", {"class": f"c{i}", **of_layer})
            for i in range(classes)
        ]
        for rate, decay in [(rate, decay) for rate in rates for decay in decays]:
            at = {**of_layer, "base_lr": rate, "weight_decay": decay}
            for name, split in ((f"{score}_holdout", "train"), (f"{score}_sweep", "val")):
                found.append(Metric(name, float(rng.uniform(0, 99)), split=split, params=at))
    return found


def knn(rng: np.random.Generator, split: str = "val") -> list[Metric]:
    grid = [{"k": k, "T": t} for k in (10, 20, 100, 200) for t in (0.07, 0.2)]
    found = []
    for p in grid:
        value = float(rng.uniform(30, 60))
        numbers = {
            "top1": value,
            "top1_ci_low": value - 2,
            "top1_ci_high": value + 3,
            "top5": value + 20,
            "top1_mean_class": value - 1,
        }
        found += [Metric(name, v, split=split, params=p) for name, v in numbers.items()]
    of_class = {"class": "c0", **grid[0]}
    return [*found, Metric("top1_class", 50.0, split=split, params=of_class)]


def svm(
    rng: np.random.Generator,
    layers: tuple[str, ...] = ("avgpool",),
    classes: int = 2,
    single: bool = False,
) -> list[Metric]:
    """``single``: images have one label, so there is top-1."""
    found = []
    for layer in layers:
        of_layer = {"layer": layer}
        found.append(Metric("mAP", float(rng.uniform(60, 80)), params=of_layer))
        if single:
            found.append(Metric("top1", float(rng.uniform(30, 60)), params=of_layer))
        for i in range(classes):
            params = {"class": f"c{i}", **of_layer}
            found.append(Metric("AP", float(rng.uniform(0, 99)), params=params))
            cost = float(rng.choice([0.01, 0.1, 1.0]))
            found.append(Metric("cost", cost, unit="C", params=params))
    return [*found, *_best_layers(found)]


def lowshot(
    rng: np.random.Generator, layers: tuple[str, ...] = ("avgpool",), single: bool = False
) -> list[Metric]:
    found = []
    for layer in layers:
        for k in KS:
            params = {"k": k, "layer": layer}
            samples = rng.normal(20 + 6 * np.log2(k), 2, 5)
            honest = samples - rng.uniform(0, 3, 5)
            numbers = {
                "mAP": samples.mean(),
                "mAP_std": samples.std(),
                "mAP_min": samples.min(),
                "mAP_max": samples.max(),
                "mAP_honest": honest.mean(),
                "mAP_honest_std": honest.std(),
            }
            if single:
                numbers |= {
                    "top1": samples.mean() / 2,
                    "top1_std": samples.std() / 2,
                    "top1_honest": honest.mean() / 2,
                }
            found += [Metric(name, float(v), params=params) for name, v in numbers.items()]
            found.append(Metric("cost", 0.001, unit="C", params=params))
            for i, value in enumerate(samples):
                of_sample = {**params, "sample": i}
                found.append(Metric("mAP_sample", float(value), params=of_sample))
                cost = float(rng.choice([0.01, 1.0, 100.0]))
                found.append(Metric("cost_honest", cost, unit="C", params=of_sample))
    return [*found, *_best_layers(found)]


def _best_layers(metrics: list[Metric]) -> list[Metric]:
    best: dict[Any, Metric] = {}
    for metric in [m for m in metrics if m.name == "mAP"]:
        k = metric.params.get("k")
        best[k] = max(best.get(k, metric), metric, key=lambda m: m.value)
    several = len({m.params["layer"] for m in metrics}) > 1
    return [Metric("mAP_best_layer", m.value, params=m.params) for m in best.values() if several]


def voc(rng: np.random.Generator, classes: int = 2) -> list[Metric]:
    rules = ("11-point", "all-points")
    found = [
        Metric(f"box_{name}", float(rng.uniform(20, 70)), params={"rule": rule})
        for rule in rules
        for name in ("AP", "AP50", "AP75")
    ]
    of_classes = [{"class": f"c{i}", "rule": rule} for rule in rules for i in range(classes)]
    return found + [Metric("box_AP_class", float(rng.uniform(9, 60)), params=p) for p in of_classes]


def coco(rng: np.random.Generator, classes: int = 2) -> list[Metric]:
    rule = {"rule": "101-point"}
    names = [(n, rule) for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    names += [("AP_class", {"class": f"c{i}", **rule}) for i in range(classes)]
    return [
        Metric(f"{kind}_{n}", float(rng.uniform(9, 40)), split="val", params=params)
        for kind in ("box", "mask")
        for n, params in names
    ]


def schedule(
    lr: float, iterations: int, searched: dict[float, float] | None = None
) -> list[Metric]:
    """What ran; ``searched`` is box AP by rate on the held-out part."""
    return [
        *(
            Metric("box_AP_holdout", value, split="holdout", params={"lr": rate})
            for rate, value in (searched or {}).items()
        ),
        Metric("lr", lr, unit="", split="train"),
        Metric("iterations", iterations, unit="", split="train"),
    ]


def detections(
    folder: Path, record_file: Path, level: float, kinds: tuple[str, ...] = ("box",)
) -> Path:
    """What the job of a record leaves: precision.json, two classes whose mean is ``level`` (half of
    it at IoU 0.75), detections.png of that grey, predictions.json. Returns the job's folder."""
    job = folder / "jobs" / record_file.stem
    job.mkdir(parents=True)
    grid = [i / 100 for i in range(101)]
    classes = {
        name: [[value] * 101, [value / 2] * 101]
        for name, value in (("a", level - 0.2), ("b", level + 0.2))
    }
    curves = {"recall": grid, "iou": [0.5, 0.75], "precision": dict.fromkeys(kinds, classes)}
    (job / "precision.json").write_text(json.dumps(curves))
    (job / "predictions.json").write_text("[]")
    Image.new("L", (9, 9), round(255 * level)).save(job / "detections.png")
    return job


def segment(rng: np.random.Generator, classes: int = 2) -> list[Metric]:
    names = [(n, {}) for n in ("mIoU", "pixel_acc", "mean_acc")]
    names += [(n, {"class": f"c{i}"}) for n in ("IoU", "acc") for i in range(classes)]
    return [Metric(n, float(rng.uniform(30, 90)), split="val", params=p) for n, p in names]


VERBS: dict[str, tuple[str, Callable[..., list[Metric]], str]] = {
    "in1k-linear-lars-90e": ("linear", linear, "imagenet-1k"),
    "in1k-knn": ("knn", knn, "imagenet-1k"),
    "voc07-svm": ("svm", svm, "voc07"),
    "voc07-lowshot": ("svm", lowshot, "voc07"),
    "voc07-frcnn-c4": ("detect", voc, "voc07"),
    "coco-mrcnn-c4-1x": ("detect", coco, "coco2017"),
    "voc12aug-fcn-20k": ("segment", segment, "voc12aug"),
}


def record(
    benchmark: str,
    backbone: str,
    metrics: list[Metric],
    *,
    trial: int = 0,
    dataset: str = "digit-scenes",
    verb: str = "",
    sha256: str = "",
    **protocol: Any,
) -> Record:
    """A record; ``protocol`` adds to or changes the settings."""
    settings = {"epochs": 90, "skip_bad": False, "version": 1, "engine": "torch", **protocol}
    return Record(
        benchmark=benchmark,
        verb=verb or VERBS[benchmark][0],
        protocol=settings,
        protocol_hash=digest_of(settings),
        backbone={
            "name": backbone,
            "sha256": sha256 or digest_of(backbone),
            "arch": "resnet18-w32",
            "method": {"random": "random init"}.get(backbone, "SimSiam"),
            "epochs": {"random": 0, "unsaid": None}.get(backbone, 200),
        },
        dataset=DatasetInfo(dataset, digest_of(dataset), {"train": 1300, "val": 497}),
        seed=trial,
        trial=trial,
        engine=settings["engine"],
        metrics=metrics,
        seconds=36.0,
        peak_memory_bytes=2**30,
        software={"siambench": "0.1.0", "python": "3.11.9", "torch": "2.15.0"},
        hardware={"device": "cpu", "cpu": "AMD EPYC", "threads": 2},
        started=f"2026-11-22T10:00:{trial:02d}+00:00",
    )


def save(folder: Path, rec: Record) -> Path:
    """Write ``rec`` where :func:`siambench.evaluation.run_evaluation` would."""
    data = rec.dataset.fingerprint
    sha, hashed = rec.backbone["sha256"], rec.protocol_hash
    key = record_key(rec.benchmark, hashed, sha, data, rec.seed, rec.trial)
    path = folder / "records" / f"{rec.benchmark}-{rec.backbone['name']}-{key}.json"
    write_record(path, rec)
    return path


def fill(
    folder: Path,
    *,
    backbones: tuple[str, ...] = ("simsiam", "supervised", "random"),
    trials: int = 1,
    official: bool = False,
    seed: int = 0,
    benchmarks: tuple[str, ...] = tuple(VERBS),
) -> list[Record]:
    """Records of every benchmark for every backbone; on the real data sets' names if ``official``."""
    rng = np.random.default_rng(seed)
    records = []
    for benchmark in benchmarks:
        _, make, name = VERBS[benchmark]
        for backbone in backbones:
            for trial in range(trials):
                data = name if official else "digit-scenes"
                rec = record(benchmark, backbone, make(rng), trial=trial, dataset=data)
                save(folder, rec)
                records.append(rec)
    return records


def monitor(folder: Path, name: str, epochs: int = 20, labels: bool = False) -> Path:
    """A training curve; ``labels`` makes it a supervised one."""
    path = folder / "pretrain" / name / "monitor.jsonl"
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    rows = []
    for epoch in range(1, epochs + 1):
        x = epoch / epochs
        loss = 2.3 * np.exp(-4 * x) if labels else -0.9 * (1 - np.exp(-3 * x))
        rows.append(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "loss": float(loss + rng.normal(0, 0.01)),
                "std": None if labels else float(0.0442 * (0.9 + 0.05 * np.sin(9 * x))),
                "std_target": 512**-0.5,
                "lr": 0.05,
                "knn_top1": float(30 + 50 * x) if epoch % 2 == 0 else None,
                "seconds": 1.8,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
