"""The full protocol: per class, the cost with the best cross-validated AP, then all training images."""

from typing import Any

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, cost_values
from eval_lowshot.data import SvmData
from eval_lowshot.folds import blocks, fold_aps, fold_labels
from eval_lowshot.solution import Solver
from eval_lowshot.targets import targets
from eval_lowshot.tasks import Key, Task, run_tasks, workers
from siambench.average_precision import interpolated_ap
from siambench.evaluation import Job
from siambench.record import Metric

_BLOCK = 10  # classes: with their folds enough for an efficient product


def full(solver: Solver, layer: str, data: SvmData, config: SvmConfig, job: Job) -> list[Metric]:
    """mAP and AP per class on test; with one label an image top-1 too.

    Source: fair_self_supervision_benchmark, tools/svm/train_svm_kfold.py and test_svm.py.
    """
    costs = cost_values(config)
    tasks: dict[Key, Task] = {}
    for columns in blocks(len(data.classes), _BLOCK):
        y = targets(data.train.labels, columns, str(config.difficult_train))
        truth = targets(data.test.labels, columns, "drop")
        size = len(columns) * (len(costs) * FOLDS + 1)
        tasks[layer, columns[0]] = Task(full_block, (solver, y.T, truth.T, costs), size)
    results = run_tasks(
        tasks, job.folder / f"{layer}.jsonl", f"{job.title}: SVMs, {layer}", *workers(config, job)
    )

    metrics = []
    found = [
        (ap, cost) for r in results.values() for ap, cost in zip(r["AP"], r["cost"], strict=True)
    ]
    mean = 100 * np.mean([ap for ap, _ in found])
    metrics.append(Metric("mAP", float(mean), split=data.test.name, params={"layer": layer}))
    if not data.multilabel:
        top = np.array([r["top"] for r in results.values()]).argmax(axis=0)
        whose = np.array([r["class"] for r in results.values()])[top, np.arange(len(top))]
        firsts = np.array([first for _, first in tasks])[top]
        right = 100 * np.mean(whose + firsts == data.test.labels)
        metrics.append(Metric("top1", float(right), split=data.test.name, params={"layer": layer}))
    for name, (ap, cost) in zip(data.classes, found, strict=True):
        params = {"class": name, "layer": layer}
        metrics.append(Metric("AP", 100 * ap, split=data.test.name, params=params))
        metrics.append(Metric("cost", cost, unit="C", split=data.test.name, params=params))
    return metrics


def full_block(
    solver: Solver, y: np.ndarray, truth: np.ndarray, costs: list[float]
) -> dict[str, Any]:
    """Some classes: cross-validate every cost, train once more with the best, test.

    Args:
        solver: has the features of both splits.
        y: (P, n) of 1, -1 and 0 (left out) for the images of train.
        truth: (P, M) likewise for test.
        costs: values of C; of equally good ones the first is chosen.

    Returns:
        Per class ``cost``, ``AP`` on test, and ``cv``, the cross-validated AP of every cost; per test
        image ``top``, the highest score, and ``class``, which of the P has it.
    """
    rows = np.arange(y.shape[1])
    parts = fold_labels(y, FOLDS)
    cv = np.empty((len(costs), len(y)))
    for solution in solver.solve(rows, parts, costs):
        cv[solution.costs] = fold_aps(y, parts, solution, 0)
    chosen = cv.argmax(axis=0)
    scores = np.empty(truth.shape)
    for cost in np.unique(chosen):
        of_it = chosen == cost
        for solution in solver.solve(rows, y[of_it], [costs[cost]]):
            scores[of_it] = solver.test(solution.weights)
    aps = [
        float(interpolated_ap(labels[labels != 0] == 1, row[labels != 0]))
        for labels, row in zip(truth, scores, strict=True)
    ]
    return {
        "cost": [costs[cost] for cost in chosen],
        "AP": aps,
        "cv": cv.T.tolist(),
        "top": scores.max(axis=0).tolist(),
        "class": scores.argmax(axis=0).tolist(),
    }
