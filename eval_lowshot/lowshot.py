"""The low-shot protocol: k positives per class, several samples, every cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, cost_values
from eval_lowshot.data import SvmData
from eval_lowshot.folds import blocks, fold_aps, fold_labels
from eval_lowshot.samples import Sample
from eval_lowshot.solution import Solver
from eval_lowshot.targets import targets
from eval_lowshot.tasks import Key, Task, run_tasks, workers
from siambench.average_precision import interpolated_ap
from siambench.evaluation import Job
from siambench.record import Metric

_BLOCK = 32  # classes that share a sample: with their folds enough for an efficient product


def lowshot(
    solver: Solver,
    layer: str,
    samples: Sequence[Sample],
    rows: np.ndarray,
    data: SvmData,
    config: SvmConfig,
    job: Job,
) -> list[Metric]:
    """mAP for each k: mean, min, max, std over samples, and the honest mean; top-1 for single labels.

    Args:
        solver: has the features of the images ``rows`` of train, and of test.
        layer: whose features they are.
        samples: every k and sample.
        rows: sorted, all that the samples have.
        data, config, job: as for every evaluator.
    """
    costs = cost_values(config)
    tasks: dict[Key, Task] = {
        (layer, sample.k, sample.number): Task(
            lowshot_sample,
            (solver, sample, rows, data.test.labels, len(data.classes), costs, folds_of(sample.k)),
            len(data.classes) * len(costs) * (1 + folds_of(sample.k)),
        )
        for sample in sorted(samples, key=lambda sample: -sample.k)  # the longest first
    }
    results = run_tasks(
        tasks, job.folder / f"{layer}.jsonl", f"{job.title}: SVMs, {layer}", *workers(config, job)
    )
    metrics = []
    for k in dict.fromkeys(sample.k for sample in samples):
        of_k = [results[layer, k, s.number] for s in samples if s.k == k]
        metrics += summarise(of_k, costs, data.test.name, {"k": k, "layer": layer})
    return metrics


def folds_of(k: int) -> int:
    """Folds of the cross-validation within k positives; 0 if a single one is all there is."""
    return min(FOLDS, k) if k > 1 else 0


def lowshot_sample(
    solver: Solver,
    sample: Sample,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    costs: list[float],
    folds: int,
) -> dict[str, Any]:
    """All classes of one sample: test AP with every cost, and cross-validated AP within the sample.

    Source: fair_self_supervision_benchmark, tools/svm/train_svm_low_shot.py and test_svm_low_shot.py;
    the cross-validation is ours.

    Args:
        solver: has the features of the images ``rows`` of train, and of test.
        sample: what to train on.
        rows: sorted rows of train.
        labels: of test, (M, classes) of 1, -1 and 0 (left out), or (M,) numbers.
        classes: how many.
        costs: values of C.
        folds: of the cross-validation; 0 leaves it out, as a single positive must.

    Returns:
        ``AP`` on test and ``cv``, (classes, costs) in [0, 1], the latter None without folds; and for
        single labels ``top1``, (costs,).
    """
    ap, cv = np.empty((classes, len(costs))), np.empty((classes, len(costs)))
    best = np.full((len(costs), len(labels)), -np.inf)
    winner = np.zeros(best.shape, np.int64)
    for columns in blocks(classes, _BLOCK):
        trained, cv[columns] = _train(solver, sample, rows, columns, costs, folds)
        scores = solver.test([weights for _, _, weights in trained])
        of_cost = np.concatenate([cost for cost, _, _ in trained])
        of_column = np.concatenate([column for _, column, _ in trained])
        for column, truth in zip(columns, targets(labels, columns, "drop").T, strict=True):
            mine, used = of_column == column, truth != 0
            here, at = scores[mine], of_cost[mine]
            ap[column, at] = interpolated_ap(truth[used] == 1, here[:, used])
            if labels.ndim == 1:
                winner[at] = np.where(here > best[at], column, winner[at])
                best[at] = np.maximum(here, best[at])
    found: dict[str, Any] = {"AP": ap.tolist(), "cv": cv.tolist() if folds else None}
    if labels.ndim == 1:
        found["top1"] = (winner == labels).mean(axis=1).tolist()
    return found


def _train(
    solver: Solver,
    sample: Sample,
    rows: np.ndarray,
    columns: range,
    costs: list[float],
    folds: int,
) -> tuple[list[tuple[np.ndarray, np.ndarray, Any]], np.ndarray]:
    """SVMs of some classes: indices of cost and class of each, and weights; and (P, costs) the folds' AP."""
    trained, cv = [], np.empty((len(columns), len(costs)))
    images, signs = sample.of(columns)
    share = len(columns) // len(images)  # classes that have the same images
    for group, (of_group, y) in enumerate(zip(images, signs.transpose(0, 2, 1), strict=True)):
        parts = fold_labels(y, folds) if folds else y[:0]
        own = slice(group * share, (group + 1) * share)
        everything = np.concatenate([y, parts])
        for solution in solver.solve(np.searchsorted(rows, of_group), everything, costs):
            weights = solution.weights[:, :share]
            cost = np.repeat(solution.costs, share)
            column = np.tile(columns[own], len(solution.costs))
            trained.append((cost, column, weights.reshape(len(cost), -1)))
            if folds:
                cv[own, solution.costs] = fold_aps(y, parts, solution, share).T
    return trained, cv


def summarise(
    results: Sequence[dict[str, Any]], costs: Sequence[float], split: str, params: dict[str, Any]
) -> list[Metric]:
    """The numbers of one k.

    The literature's: the one cost with the best mean test mAP over the samples
    (fair_self_supervision_benchmark, aggregate_low_shot_svm_stats.py), so it is tuned on the test
    split. The honest: for each sample the cost with the best mean over classes of the AP
    cross-validated within that sample's own images: no test image, and no label beyond the shots.
    With one positive nothing is left to validate on: the cost nearest to 1, LinearSVC's default.

    Args:
        results: of the samples, as :func:`lowshot_sample` returns them.
        costs: values of C.
        split: the test split's name.
        params: of every metric.
    """
    test = 100 * np.array([r["AP"] for r in results]).mean(axis=1)
    chosen = int(np.argmax(test.mean(axis=0)))
    if results[0]["cv"] is None:
        nearest = int(np.argmin([abs(math.log(cost)) for cost in costs]))
        honest = np.full(len(results), nearest)
    else:
        honest = np.array([r["cv"] for r in results]).mean(axis=1).argmax(axis=1)
    every = np.arange(len(results))
    kept = test[:, chosen]
    numbers = {
        "mAP": kept.mean(),
        "mAP_std": kept.std(),
        "mAP_min": kept.min(),
        "mAP_max": kept.max(),
        "mAP_honest": test[every, honest].mean(),
        "mAP_honest_std": test[every, honest].std(),
    }
    if "top1" in results[0]:
        top1 = 100 * np.array([r["top1"] for r in results])
        numbers |= {
            "top1": top1[:, chosen].mean(),
            "top1_std": top1[:, chosen].std(),
            "top1_honest": top1[every, honest].mean(),
            "top1_honest_std": top1[every, honest].std(),
        }
    metrics = [Metric(name, float(x), split=split, params=params) for name, x in numbers.items()]
    metrics.append(Metric("cost", costs[chosen], unit="C", split=split, params=params))
    for sample, value in enumerate(kept):
        of_sample = {**params, "sample": sample}
        metrics.append(Metric("mAP_sample", float(value), split=split, params=of_sample))
        cost = costs[honest[sample]]
        metrics.append(Metric("cost_honest", cost, unit="C", split=split, params=of_sample))
    return metrics
