"""The linear probe: a linear classifier on a backbone that is proven frozen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval_linear.checks import problems
from eval_linear.config import LinearConfig
from eval_linear.multilabel import Precisions, Ranking
from eval_linear.probe import Probe, save_heads, train
from eval_linear.results import (
    as_metrics,
    class_metrics,
    keep_answers,
    map_interval_metrics,
    top1_interval,
)
from eval_linear.roads import Batches, Cached, Online
from eval_linear.scores import Scores, Tally, hold_out
from siambench.backbone import Backbone, weights_digest
from siambench.data.classification import Classification, Split, open_classification
from siambench.errors import UserError
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.features import LayerFeatures
from siambench.pooling import LAYERS
from siambench.record import Metric, Record

_BATCH = 1024  # test images scored at once


def open_data(config: LinearConfig) -> Classification:
    """Check the protocol and open the data.

    Raises:
        UserError: a number out of range, or as :func:`open_classification`.
    """
    for problem in problems(config):
        raise UserError(f"linear: {problem}")
    data = open_classification(config.data, skip_bad=config.skip_bad, download=config.download)
    labels = data.train.labels
    if len(config.settings) > 1 and len(labels) == (1 if data.multilabel else len(data.classes)):
        raise UserError(
            f"linear: every class of {config.data} has one training image, so none can be held out to "
            "choose among several settings; name one base_lr and one weight_decay"
        )
    return data


def evaluate(
    backbone: Backbone, data: Classification, config: LinearConfig, job: Job
) -> list[Metric]:
    """Train and test the heads.

    Returns:
        Per layer, on the test split, in %: ``top1`` with its 95 % interval, ``top5``,
        ``top1_mean_class`` and ``top1_class``; where images have several labels ``mAP`` with its
        interval and ``AP_class``. With several settings, for each of them ``top1_holdout``, by which
        one was chosen, and ``top1_sweep`` on the test split, and ``top1_test_chosen``, what a choice
        by the latter would have given (``mAP_...`` likewise).

    Raises:
        RuntimeError: the backbone changed.
        UserError: training diverged.
    """
    before = weights_digest(backbone.resnet.state_dict())
    encoder = LayerFeatures(backbone, config.layers, config.crop, config.precision)
    road: Cached | Online
    if config.road == "cached":
        road = Cached(encoder, data, config, job)
        if job.world.rank:
            return []  # the first process has all that is needed
    else:
        road = Online(encoder, data, config, job)
    probe = Probe(encoder, len(data.classes), config, job)
    labels, settings = data.train.labels, config.settings
    held_out = hold_out(labels, config.holdout, job.seed)
    train(probe, road, labels, held_out, config, job)

    several, layers = len(settings) > 1, len(probe.layers)
    chosen, choosing = [0] * layers, []
    if several:
        choosing = score(probe, road, "train", labels, np.flatnonzero(held_out), [None] * layers)
        chosen = [int(found.choice[len(settings) :].argmax()) for found in choosing]
    for heads, head in zip(probe.heads, chosen, strict=True):
        if not all(tensor.isfinite().all() for tensor in heads.plain(head)):
            raise UserError(f"linear: training diverged with base_lr {config.base_lr}; lower it")
    every = np.arange(len(data.test.labels))
    tested = score(probe, road, "test", data.test.labels, every, chosen)
    if weights_digest(backbone.resnet.state_dict()) != before:
        raise RuntimeError("the backbone changed during the linear probe; this is not a result")
    if job.world.rank:
        return []

    _save(backbone, data, config, job, probe, chosen)
    metrics = []
    for layer, found, head in zip(probe.layers, tested, chosen, strict=True):
        metrics += _metrics(found, head, data.test, data.classes, {"layer": layer}, job.seed)
    for layer, twins, found in zip(probe.layers, choosing, tested, strict=False):
        metrics += _sweep(layer, settings, data, twins, found)
    main = max(range(layers), key=lambda i: LAYERS.index(probe.layers[i]))
    predicted = None if data.multilabel else tested[main].predicted  # type: ignore[union-attr]
    names = map(data.test.images.name, every.tolist())
    answers = (data.classes, data.test.labels, predicted, tested[main].probability)
    keep_answers(job.folder, names, *answers)
    return metrics


def score(
    probe: Probe,
    road: Online | Cached,
    split: str,
    labels: np.ndarray,
    index: np.ndarray,
    keep: Sequence[int | None],
) -> list[Scores | Precisions]:
    """Score all heads on the centre crops of the images ``index`` of a split; one entry per layer.

    Args:
        probe, road: the heads and where features come from.
        split: ``"train"`` or ``"test"``.
        labels: of the whole split.
        index: image numbers.
        keep: per layer the head whose answers are kept image by image.
    """
    batches: Batches = np.array_split(index, -(-len(index) // _BATCH))
    tallies = [(Tally if labels.ndim == 1 else Ranking)(head) for head in keep]
    for batch, features in zip(batches, road.center(split, batches), strict=True):
        y = torch.from_numpy(labels[batch]).to(features.device)
        for tally, heads, rows in zip(tallies, probe.heads, probe.split(features), strict=True):
            tally.add(heads.logits(rows), y)
    return [tally.scores() for tally in tallies]


def _metrics(
    found: Scores | Precisions,
    head: int,
    test: Split,
    classes: Sequence[str],
    params: dict[str, Any],
    seed: int,
) -> list[Metric]:
    """The metrics of one layer whose setting number ``head`` was chosen."""
    if isinstance(found, Precisions):
        values = {"mAP": float(found.mean[head])}
        values |= map_interval_metrics(test.labels, found.probability, seed)
        name = "AP_class"
    else:
        values = {
            "top1": float(found.top1[head]),
            **top1_interval(int(found.right[head]), len(test.labels), seed),
            "top5": float(found.top5[head]),
            "top1_mean_class": float(found.mean_class[head]),
        }
        name = "top1_class"
    return [
        *as_metrics(values, test.name, params),
        *class_metrics(name, found.per_class[head], classes, test.name, params),
    ]


def _sweep(
    layer: str,
    settings: list[tuple[float, float]],
    data: Classification,
    twins: Scores | Precisions,
    tested: Scores | Precisions,
) -> list[Metric]:
    """What every setting scored where the choice was made and on the test split."""
    name = "mAP" if data.multilabel else "top1"
    held, of_test = twins.choice[len(settings) :], tested.choice[: len(settings)]
    metrics = as_metrics(
        {f"{name}_test_chosen": float(of_test.max())}, data.test.name, {"layer": layer}
    )
    for number, (rate, decay) in enumerate(settings):
        params = {"layer": layer, "base_lr": rate, "weight_decay": decay}
        metrics += as_metrics({f"{name}_holdout": float(held[number])}, data.train.name, params)
        metrics += as_metrics({f"{name}_sweep": float(of_test[number])}, data.test.name, params)
    return metrics


def _save(
    backbone: Backbone,
    data: Classification,
    config: LinearConfig,
    job: Job,
    probe: Probe,
    chosen: Sequence[int],
) -> None:
    """Write head.safetensors."""
    source = Path(config.backbone)
    about = {
        "backbone": backbone.name,
        "backbone_source": str(source.absolute()) if source.exists() else config.backbone,
        "backbone_sha256": backbone.sha256,
        "weights_sha256": weights_digest(backbone.resnet.state_dict()),
        "dataset": data.info.name,
        "resize": str(config.resize),
        "crop": str(config.crop),
        "mean": json.dumps(backbone.meta.mean),
        "std": json.dumps(backbone.meta.std),
        "scores": "sigmoid" if data.multilabel else "softmax",
    }
    save_heads(job.folder / "head.safetensors", probe, chosen, data.classes, about)


BENCHMARK = Benchmark("linear", 2, "torch", open_data, evaluate, parallel=True)


def run(config: LinearConfig) -> list[Record]:
    """The ``linear`` verb: evaluate, print a table, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        name = record.backbone["name"]
        road = "" if config.road == "online" else "  (short road: cached features)"
        print(f"{record.benchmark}  {name}  {record.dataset.name}  seed {record.seed}{road}")
        for line in _table(record, config):
            print(line)
        print(f"head      {Path(config.out) / 'jobs' / record.stem / 'head.safetensors'}")
    return records


def _table(record: Record, config: LinearConfig) -> list[str]:
    """A line per layer: the score, its 95 % interval, what was chosen and how."""
    kind = "mAP" if any(m.name == "mAP" for m in record.metrics) else "top1"
    headers = [kind.replace("top1", "top-1"), "95 % interval"]
    headers += [] if kind == "mAP" else ["top-5", "class mean"]
    sweep = len(config.settings) > 1
    headers += ["base_lr", "decay", "held out", "best on test"] if sweep else []
    lines = [f"{'layer':<10}" + "".join(f"{header:>15}" for header in headers)]
    for layer in config.layers:

        def value(name: str, layer: str = layer, **params: Any) -> float:
            return record.metric(name, layer=layer, **params)

        cells = [
            f"{value(kind):.2f}",
            f"{value(f'{kind}_ci_low'):.2f} to {value(f'{kind}_ci_high'):.2f}",
        ]
        if kind == "top1":
            cells += [f"{value('top5'):.2f}", f"{value('top1_mean_class'):.2f}"]
        if sweep:
            held = [
                value(f"{kind}_holdout", base_lr=rate, weight_decay=decay)
                for rate, decay in config.settings
            ]
            rate, decay = config.settings[int(np.argmax(held))]
            cells += [f"{rate:g}", f"{decay:g}", f"{max(held):.2f}"]
            cells += [f"{value(f'{kind}_test_chosen'):.2f}"]
        lines.append(f"{layer:<10}" + "".join(f"{cell:>15}" for cell in cells))
    return lines
