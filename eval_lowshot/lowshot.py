"""The low-shot protocol: k positives and 19k negatives per class, several draws, every cost."""

import json
import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, cost_values
from eval_lowshot.features import unit_features
from eval_lowshot.svm import lowshot_class
from eval_lowshot.tasks import Key, Result, Task, run_tasks
from eval_lowshot.voc import TEST, TRAIN, VocClassification, training_labels
from siambench.cache import Tables
from siambench.device import cores
from siambench.evaluation import Job
from siambench.files import write_text
from siambench.record import Metric


def draw_sample(
    y: np.ndarray, k: int, negatives: int, seed: tuple[int, int, int, int]
) -> np.ndarray:
    """Sorted indices of ``k`` images with y = 1 and ``negatives`` with y = -1, without repetition.

    Source: fair_self_supervision_benchmark, extra_scripts/create_voc_low_shot_samples.py, which
    draws each class by itself.

    Args:
        y: (n,) of 1, -1 and 0; 0 is never drawn.
        k, negatives: how many of each.
        seed: (trial's seed, k, sample, class): a draw does not depend on which others are made.
    """
    rng = np.random.default_rng([seed[0] % 2**32, *seed[1:]])
    chosen = [
        rng.choice(np.flatnonzero(y == label), number, replace=False)
        for label, number in ((1, k), (-1, negatives))
    ]
    return np.sort(np.concatenate(chosen))


def lowshot(tables: Tables, data: VocClassification, config: SvmConfig, job: Job) -> list[Metric]:
    """mAP for each layer and k: mean, min, max, std over samples, and the honest mean."""
    targets = np.stack(
        [training_labels(c, str(config.difficult_train)) for c in data.train.labels.T]
    )
    samples = {
        (k, sample, column): draw_sample(
            targets[column], k, k * config.negatives_per_positive, (job.seed, k, sample, column)
        )
        for k, sample, column in product(config.k, range(config.samples), range(len(data.classes)))
    }
    _write_samples(samples, data, job)
    costs = cost_values(config)
    metrics = []
    for layer in config.layers:
        x, x_test = unit_features(tables, TRAIN, layer), unit_features(tables, TEST, layer)
        tasks: dict[Key, Task] = {
            (layer, k, sample, data.classes[column]): (
                lowshot_class,
                (x, targets[column], drawn, x_test, data.test.labels[:, column], costs, FOLDS),
            )
            for (k, sample, column), drawn in samples.items()
        }
        results = run_tasks(
            tasks,
            job.folder / f"{layer}.jsonl",
            f"{job.title}: k × samples × classes, {layer}",
            cores() if config.workers < 0 else max(config.workers, 1),
        )
        for k in config.k:
            of_k = [
                [results[layer, k, sample, name] for name in data.classes]
                for sample in range(config.samples)
            ]
            metrics += summarise(of_k, costs, {"k": k, "layer": layer})
    return metrics


def summarise(
    results: Sequence[Sequence[Result]], costs: Sequence[float], params: dict[str, object]
) -> list[Metric]:
    """The metrics of one k from ``results[sample][class]``, as :func:`lowshot_class` returns them.

    ``mAP`` is the literature's: one cost for all samples, the one whose mean over samples is the
    highest *on test* (aggregate_low_shot_svm_stats.py; std divides by the number of samples).
    ``mAP_honest`` chooses, for each sample, the cost with the best mean over classes of the AP
    cross-validated within that sample's own images: no test image, and no label beyond the shots.
    With one positive nothing is left to validate on: the cost nearest to 1, LinearSVC's default.
    """
    test = np.array([[r["AP"] for r in row] for row in results]).mean(axis=1) * 100
    chosen = int(np.argmax(test.mean(axis=0)))
    if results[0][0]["cv"] is None:
        nearest = int(np.argmin([abs(math.log(cost)) for cost in costs]))
        honest = np.full(len(results), nearest)
    else:
        cv = np.array([[r["cv"] for r in row] for row in results]).mean(axis=1)
        honest = np.argmax(cv, axis=1)
    kept = test[:, chosen]
    numbers = {
        "mAP": kept.mean(),
        "mAP_std": kept.std(),
        "mAP_min": kept.min(),
        "mAP_max": kept.max(),
        "mAP_honest": test[np.arange(len(results)), honest].mean(),
    }
    metrics = [Metric(name, float(value), params=params) for name, value in numbers.items()]
    metrics.append(Metric("cost", costs[chosen], unit="C", params=params))
    for sample, value in enumerate(kept):
        of_sample = {**params, "sample": sample}
        metrics.append(Metric("mAP_sample", float(value), params=of_sample))
        metrics.append(Metric("cost_honest", costs[honest[sample]], unit="C", params=of_sample))
    return metrics


def _write_samples(
    samples: dict[tuple[int, int, int], np.ndarray], data: VocClassification, job: Job
) -> None:
    """``samples.json``: the images that were drawn, as indices into trainval's list of images."""
    rows = [
        {"k": k, "sample": sample, "class": data.classes[column], "images": drawn.tolist()}
        for (k, sample, column), drawn in samples.items()
    ]
    lists = ",\n".join(json.dumps(row) for row in rows)
    trainval = json.dumps([path.stem for path in data.train.paths])
    write_text(
        job.folder / "samples.json",
        f'{{"seed": {job.seed},\n"trainval": {trainval},\n"samples": [\n{lists}\n]}}\n',
    )
