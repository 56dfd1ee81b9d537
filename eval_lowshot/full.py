"""The full protocol: per class, the cost with the best cross-validated AP, then all of trainval."""

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig, cost_values
from eval_lowshot.features import unit_features
from eval_lowshot.svm import full_class
from eval_lowshot.tasks import Key, Task, run_tasks
from eval_lowshot.voc import TEST, TRAIN, VocClassification, training_labels
from siambench.cache import Tables
from siambench.device import cores
from siambench.evaluation import Job
from siambench.record import Metric


def full(tables: Tables, data: VocClassification, config: SvmConfig, job: Job) -> list[Metric]:
    """mAP and AP per class on test, for each layer."""
    costs = cost_values(config)
    metrics = []
    for layer in config.layers:
        x, x_test = unit_features(tables, TRAIN, layer), unit_features(tables, TEST, layer)
        tasks: dict[Key, Task] = {
            (layer, name): (
                full_class,
                (
                    x,
                    training_labels(data.train.labels[:, column], str(config.difficult_train)),
                    x_test,
                    data.test.labels[:, column],
                    costs,
                    FOLDS,
                ),
            )
            for column, name in enumerate(data.classes)
        }
        results = run_tasks(
            tasks,
            job.folder / f"{layer}.jsonl",
            f"{job.title}: classes, {layer}",
            cores() if config.workers < 0 else max(config.workers, 1),
        )
        aps = [100 * result["AP"] for result in results.values()]
        metrics.append(Metric("mAP", float(np.mean(aps)), params={"layer": layer}))
        for (_, name), result in results.items():
            params = {"class": name, "layer": layer}
            metrics.append(Metric("AP", 100 * result["AP"], params=params))
            metrics.append(Metric("cost", result["cost"], unit="C", params=params))
    return metrics
