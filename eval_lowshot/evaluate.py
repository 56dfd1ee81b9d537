"""``siambench svm``: the benchmark, and its result in a few lines."""

import numpy as np

from eval_lowshot.config import SvmConfig
from eval_lowshot.data import SvmData, open_data
from eval_lowshot.features import make_solver, split_features
from eval_lowshot.full import full
from eval_lowshot.lowshot import lowshot
from eval_lowshot.samples import samples_of, write_samples
from eval_lowshot.tasks import one_thread
from siambench.backbone import Backbone
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.record import Metric, Record


def evaluate(backbone: Backbone, data: SvmData, config: SvmConfig, job: Job) -> list[Metric]:
    """Features of both splits, then the protocol of ``config.mode`` on each layer.

    Returns:
        ``mAP`` and its parts per layer (and k), ``top1`` where images have one label, the chosen
        ``cost``; with several layers ``mAP_best_layer``; and for each class that was left out
        ``left_out``.
    """
    rows = np.arange(len(data.train.labels))
    samples = samples_of(data, config, job.seed) if config.mode == "lowshot" else []
    if samples:
        used = np.unique(np.concatenate([sample.rows for sample in samples]))
        rows = used if 2 * len(used) < len(rows) else rows  # else full and all trials share a table
    tables = split_features(backbone, data, rows, config, job)
    if job.world.rank:
        return []  # the first process has all that is needed
    if samples:
        write_samples(samples, data, job.folder / "samples.json", job.seed)
    metrics = []
    for layer in config.layers:
        with one_thread():
            solver = make_solver(tables, layer, data, config, job.device)
        if config.mode == "full":
            metrics += full(solver, layer, data, config, job)
        else:
            metrics += lowshot(solver, layer, samples, rows, data, config, job)
    return metrics + _best_layers(metrics, config) + _left_out(data)


def _best_layers(metrics: list[Metric], config: SvmConfig) -> list[Metric]:
    """The highest mAP of the layers, per k: the literature's "best layer", chosen on the test split."""
    if len(config.layers) < 2:
        return []
    best: dict[int | None, Metric] = {}
    for metric in metrics:
        if metric.name == "mAP":
            before = best.setdefault(metric.params.get("k"), metric)
            best[metric.params.get("k")] = max(before, metric, key=lambda m: m.value)
    return [
        Metric("mAP_best_layer", m.value, split=m.split, params=m.params) for m in best.values()
    ]


def _left_out(data: SvmData) -> list[Metric]:
    return [
        Metric(
            "left_out", 1, unit="class", split=data.train.name, params={"class": name, "why": why}
        )
        for name, why in data.left_out.items()
    ]


BENCHMARK = Benchmark(
    verb="svm",
    version=2,
    engine=lambda config: "scikit-learn" if config.solver == "liblinear" else "torch",
    open_data=open_data,
    evaluate=evaluate,
    seeded=lambda config: config.mode == "lowshot" and not config.samples_dir,
    parallel=lambda config: "features",
)


def run(config: SvmConfig) -> list[Record]:
    """Run what is not recorded yet, print each result, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        for line in summary(record):
            print(line)
    return records


def summary(record: Record) -> list[str]:
    """One line per layer, or per layer and k; then the best layer, and what was left out."""
    head = f"{record.benchmark}  {record.backbone['name']}"
    values = {(m.name, *m.params.values()): m.value for m in record.metrics}
    lines = []
    for metric in record.metrics:
        k, layer = metric.params.get("k"), metric.params.get("layer")
        at = tuple(metric.params.values())
        where = f"{head}  {layer}" + ("" if k is None else f"  k {k:>2}")
        top1 = f"  top-1 {values['top1', *at]:.2f}" if ("top1", *at) in values else ""
        if metric.name == "mAP" and k is None:
            lines.append(f"{where}  mAP {metric.value:.2f}{top1}")
        elif metric.name == "mAP":
            std, low, high, honest = (
                values[f"mAP_{name}", *at] for name in ("std", "min", "max", "honest")
            )
            lines.append(
                f"{where}  mAP {metric.value:.2f} ± {std:.2f} ({low:.2f} to {high:.2f}), "
                f"honest {honest:.2f}{top1}"
            )
        elif metric.name == "mAP_best_layer" and k is None:
            lines.append(
                f"{where}  mAP {metric.value:.2f}: the best layer, chosen on {metric.split}"
            )
    left_out = [str(m.params["class"]) for m in record.metrics if m.name == "left_out"]
    if left_out:
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        lines.append(f"{head}  left out: {len(left_out)} classes with too few images ({shown})")
    return lines
