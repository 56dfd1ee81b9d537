"""The linear probe: a linear classifier on a backbone that is proven frozen."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval_linear.checks import check_linear, warn_of_enlarging
from eval_linear.config import LinearConfig
from eval_linear.probe import Probe, diverged, save_heads, train
from eval_linear.results import keep_answers, layer_metrics, lines_of, sweep_metrics
from eval_linear.roads import Cached, Online
from eval_linear.scores import hold_out, score
from siambench.backbone import Backbone, weights_digest
from siambench.data.classification import Classification, open_classification
from siambench.distributed import World
from siambench.errors import UserError
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.features import LayerFeatures
from siambench.pooling import LAYERS
from siambench.record import Metric, Record, record_path


def open_data(config: LinearConfig) -> Classification:
    """Check the protocol and open the data.

    Raises:
        UserError: a number out of range, or as :func:`open_classification`.
    """
    check_linear(config)
    data = open_classification(config.data, skip_bad=config.skip_bad, download=config.download)
    labels = data.train.labels
    if len(config.settings) > 1 and len(labels) == (1 if data.multilabel else len(data.classes)):
        raise UserError(
            f"linear: every class of {config.data} has one training image, so none can be held out to "
            "choose among several settings; name one base_lr and one weight_decay"
        )
    warn_of_enlarging(data, config.resize, config.crop)
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
            return []  # the first process has all that is needed, and goes on alone
        job = replace(job, world=World(0, 1, job.device))
    else:
        road = Online(encoder, data, config, job)
    probe = Probe(encoder, len(data.classes), config, job)
    labels, settings = data.train.labels, config.settings
    held_out = hold_out(labels, config.holdout, job.seed)
    train(probe, road, labels, held_out, config, job)

    several, layers = len(settings) > 1, len(probe.layers)
    chosen, choosing = [0] * layers, []
    if several:
        choosing = score(probe, road, "train", labels, np.flatnonzero(held_out))
        chosen = [int(found.choice[len(settings) :].argmax()) for found in choosing]
    for heads, head in zip(probe.heads, chosen, strict=True):
        if not all(tensor.isfinite().all() for tensor in heads.plain(head)):
            raise job.world.problem(diverged(config))
    every = np.arange(len(data.test.labels))
    tested = score(probe, road, "test", data.test.labels, every, chosen)
    if weights_digest(backbone.resnet.state_dict()) != before:
        raise RuntimeError("the backbone changed during the linear probe; this is not a result")
    if job.world.rank:
        return []

    _save(backbone, data, config, job, probe, chosen)
    metrics = []
    for layer, found, head in zip(probe.layers, tested, chosen, strict=True):
        metrics += layer_metrics(found, head, data.test, data.classes, {"layer": layer}, job.seed)
    for layer, twins, found in zip(probe.layers, choosing, tested, strict=False):
        metrics += sweep_metrics(layer, settings, data, twins, found)
    main = max(range(layers), key=lambda i: LAYERS.index(probe.layers[i]))
    predicted = None if data.multilabel else tested[main].predicted  # type: ignore[union-attr]
    names = map(data.test.images.name, every.tolist())
    answers = (data.classes, data.test.labels, predicted, tested[main].probability)
    keep_answers(job.folder, names, *answers)
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
        "precision": config.precision,
        "scores": "sigmoid" if data.multilabel else "softmax",
    }
    save_heads(job.folder / "head.safetensors", probe, chosen, data.classes, about)


BENCHMARK = Benchmark(
    "linear",
    2,
    lambda config: "torch",
    open_data,
    evaluate,
    parallel=lambda config: "features" if config.road == "cached" else "steps",
)


def run(config: LinearConfig) -> list[Record]:
    """The ``linear`` verb: evaluate, print a table, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        name = record.backbone["name"]
        road = "" if config.road == "online" else "  (short road: cached features)"
        print(f"{record.benchmark}  {name}  {record.dataset.name}  seed {record.seed}{road}")
        for line in lines_of(record, config):
            print(line)
        print(f"head      {Path(config.out) / 'jobs' / record.stem / 'head.safetensors'}")
        print(f"record    {record_path(config.out, record)} ({record.seconds:.0f} s)")
    return records
