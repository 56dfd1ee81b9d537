"""``siambench svm``: the benchmark, and its result in a few lines."""

from eval_lowshot.config import SvmConfig
from eval_lowshot.features import split_features
from eval_lowshot.full import full
from eval_lowshot.lowshot import lowshot
from eval_lowshot.voc import VocClassification, open_data
from siambench.backbone import Backbone
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.record import Metric, Record


def evaluate(
    backbone: Backbone, data: VocClassification, config: SvmConfig, job: Job
) -> list[Metric]:
    """Features of both splits, then the protocol of ``config.mode``."""
    tables = split_features(backbone, data, config, job)
    if job.world.rank:
        return []  # the first process has all that is needed
    protocol = full if config.mode == "full" else lowshot
    return protocol(tables, data, config, job)


BENCHMARK = Benchmark(
    verb="svm",
    version=1,
    engine="scikit-learn",
    open_data=open_data,
    evaluate=evaluate,
    seeded=lambda config: config.mode == "lowshot",  # full draws nothing
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
    """One line per layer, or per layer and k."""
    head = f"{record.benchmark}  {record.backbone['name']}"
    lines = []
    for metric in record.metrics:
        if metric.name == "mAP" and "k" not in metric.params:
            lines.append(f"{head}  {metric.params['layer']}  mAP {metric.value:.2f}")
        elif metric.name == "mAP":
            others = {
                name: record.metric(f"mAP_{name}", **metric.params)
                for name in ("std", "min", "max", "honest")
            }
            lines.append(
                f"{head}  {metric.params['layer']}  k {metric.params['k']:>2}  "
                f"mAP {metric.value:.2f} ± {others['std']:.2f} "
                f"({others['min']:.2f} to {others['max']:.2f}), honest {others['honest']:.2f}"
            )
    return lines
