"""``siambench segment``: train, test, metrics."""

import torch

from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.metrics import metrics_of
from eval_segmentation.model import FCN
from eval_segmentation.pairs import SegmentationData
from eval_segmentation.predict import confusion_matrix
from eval_segmentation.train import train
from siambench.backbone import Backbone
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.record import Metric, Record


def evaluate(
    backbone: Backbone, data: SegmentationData, config: SegmentConfig, job: Job
) -> list[Metric]:
    """Fine-tune an FCN from ``backbone`` on ``data.train``; mIoU and the rest on ``data.val``."""
    model = FCN(backbone, len(data.classes), config).to(job.device)
    model.to(memory_format=torch.channels_last)
    train(model, backbone.meta, data, config, job)
    matrix = confusion_matrix(model, backbone.meta, data, config, job)
    metrics = metrics_of(matrix, data.classes, "val")
    return metrics


BENCHMARK = Benchmark(
    verb="segment",
    version=2,
    engine=lambda config: "torch",
    open_data=open_data,
    evaluate=evaluate,
    parallel=lambda config: "steps",
)


def run(config: SegmentConfig) -> list[Record]:
    """Run all trials and print one line for each."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        counted = sum(metric.name == "IoU" for metric in record.metrics)
        total = record.dataset.counts["classes"]
        numbers = "  ".join(
            f"{name} {record.metric(name):.1f}" for name in ("mIoU", "pixel_acc", "mean_acc")
        )
        name = f"{record.benchmark} {record.backbone['name']} #{record.trial}"
        print(
            f"{name} on {record.dataset.name}: {numbers}  (mean over {counted} of {total} classes)"
        )
    return records
