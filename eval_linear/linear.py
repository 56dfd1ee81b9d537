"""The linear probe: a linear classifier on a backbone that is proven frozen."""

import json
from pathlib import Path

import numpy as np

from eval_linear.checks import problems
from eval_linear.config import LinearConfig
from eval_linear.folders import Folders, open_folders
from eval_linear.probe import Probe, save_heads, train
from eval_linear.roads import Cached, LayerFeatures, Online, discard_stored
from eval_linear.scores import Scores, hold_out, score
from siambench.backbone import Backbone, weights_digest
from siambench.errors import UserError
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.record import Metric, Record


def open_data(config: LinearConfig) -> Folders:
    """Check the protocol and read the folders.

    Raises:
        UserError: a number out of range, or as :func:`open_folders`.
    """
    for problem in problems(config):
        raise UserError(f"linear: {problem}")
    data = open_folders(config.data, config.skip_bad)
    if len(config.settings) > 1 and len(data.train) == len(data.classes):
        raise UserError(
            f"linear: every class in {config.data}/train has one image, so none can be held out to "
            "choose among several settings; name one base_lr and one weight_decay"
        )
    return data


def evaluate(backbone: Backbone, data: Folders, config: LinearConfig, job: Job) -> list[Metric]:
    """Train and test the heads.

    Returns:
        ``top1``, ``top5`` and ``top1_class`` on val per layer, in %. With several rates also
        ``top1_holdout``, by which the rate was chosen, and ``top1_lr`` on val, per layer and rate.

    Raises:
        RuntimeError: the backbone changed.
        UserError: training diverged.
    """
    before = weights_digest(backbone.resnet.state_dict())
    encoder = LayerFeatures(backbone, config.layers, config.crop)
    road = (Cached if config.road == "cached" else Online)(encoder, data, config, job)
    probe = Probe(encoder, len(data.classes), config, job)
    labels, rates = data.labels("train"), config.settings
    held_out = hold_out(labels, config.holdout, job.seed)
    train(probe, road, labels, held_out, config, job)

    chosen, choosing = [0] * len(probe.layers), []
    if len(rates) > 1:
        choosing = score(probe, road, "train", labels, np.flatnonzero(held_out))
        chosen = [int(scores.top1[len(rates) :].argmax()) for scores in choosing]
    for heads, head in zip(probe.heads, chosen, strict=True):
        if not all(tensor.isfinite().all() for tensor in heads.plain(head)):
            raise UserError(f"linear: training diverged with base_lr {config.base_lr}; lower it")
    val = data.labels("val")
    tested = score(probe, road, "val", val, np.arange(len(val)))
    if weights_digest(backbone.resnet.state_dict()) != before:
        raise RuntimeError("the backbone changed during the linear probe; this is not a result")
    source = Path(config.backbone)
    about = {
        "backbone": backbone.name,
        "backbone_source": str(source.absolute()) if source.exists() else config.backbone,
        "backbone_sha256": backbone.sha256,
        "weights_sha256": before,
        "dataset": data.info.name,
        "resize": str(config.resize),
        "crop": str(config.crop),
        "mean": json.dumps(backbone.meta.mean),
        "std": json.dumps(backbone.meta.std),
    }
    save_heads(job.folder / "head.safetensors", probe, chosen, data.classes, about)
    discard_stored(job.folder)
    metrics = [
        metric
        for layer, scores, head in zip(probe.layers, tested, chosen, strict=True)
        for metric in _metrics(layer, scores, head, rates, data.classes)
    ]
    for layer, scores in zip(probe.layers, choosing, strict=False):  # none without a choice
        metrics += _by_rate("top1_holdout", "train", layer, rates, scores.top1[len(rates) :])
    return metrics


def _metrics(
    layer: str, scores: Scores, head: int, rates: list[tuple[float, float]], classes: list[str]
) -> list[Metric]:
    """The metrics of one layer whose rate number ``head`` was chosen."""
    of_layer = {"layer": layer}
    found = [
        Metric("top1", float(scores.top1[head]), split="val", params=of_layer),
        Metric("top5", float(scores.top5[head]), split="val", params=of_layer),
    ]
    for name, value in zip(classes, scores.per_class[head], strict=True):
        if np.isfinite(value):  # a class without val images has no accuracy
            params = {"class": name, **of_layer}
            found.append(Metric("top1_class", float(value), split="val", params=params))
    if len(rates) > 1:
        found += _by_rate("top1_lr", "val", layer, rates, scores.top1[: len(rates)])
    return found


def _by_rate(
    name: str, split: str, layer: str, rates: list[tuple[float, float]], values: np.ndarray
) -> list[Metric]:
    """One metric per learning rate."""
    return [
        Metric(
            name,
            float(value),
            split=split,
            params={"layer": layer, "base_lr": rate, "weight_decay": decay},
        )
        for (rate, decay), value in zip(rates, values, strict=True)
    ]


BENCHMARK = Benchmark("linear", 1, "torch", open_data, evaluate)


def run(config: LinearConfig) -> list[Record]:
    """The ``linear`` verb: evaluate, print a table, return the records."""
    records = run_evaluation(BENCHMARK, config)
    sweep = len(config.settings) > 1
    for record in records:
        name = record.backbone["name"]
        print(f"{record.benchmark}  {name}  {record.dataset.name}  seed {record.seed}")
        print(f"{'layer':<10}{'top-1':>8}{'top-5':>8}" + (f"{'base_lr':>10}" if sweep else ""))
        for layer in config.layers:
            top1, top5 = (record.metric(name, layer=layer) for name in ("top1", "top5"))
            line = f"{layer:<10}{top1:8.2f}{top5:8.2f}"
            if sweep:
                rates = config.settings
                line += f"{max(rates, key=lambda r: _held(record, layer, *r))[0]:>10g}"
            print(line)
        print(f"head      {Path(config.out) / 'jobs' / record.stem / 'head.safetensors'}")
    return records


def _held(record: Record, layer: str, rate: float, decay: float) -> float:
    """Top-1 on the held-out part of the training split."""
    return record.metric("top1_holdout", layer=layer, base_lr=rate, weight_decay=decay)
