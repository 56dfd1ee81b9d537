"""``siambench segment``: train, test, metrics."""

import torch

from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.metrics import csv_of, metrics_of
from eval_segmentation.pairs import SegmentationData
from eval_segmentation.pictures import draw_pictures, shown
from eval_segmentation.predict import measure
from eval_segmentation.train import train
from siambench.backbone import Backbone
from siambench.errors import Diverged
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.files import write_text
from siambench.record import Metric, Record


def evaluate(
    backbone: Backbone, data: SegmentationData, config: SegmentConfig, job: Job
) -> list[Metric]:
    """Fine-tune an FCN from ``backbone`` on ``data.train``; mIoU and the rest on ``data.val``.

    The confusion matrix, pictures of predictions and, until the record is written, the checkpoint
    stay in ``job.folder``.
    """
    torch.backends.cudnn.benchmark = True  # all crops have one shape
    try:
        model = train(backbone, data, config, job)
    except Diverged as error:
        raise job.world.problem(str(error)) from None
    torch.backends.cudnn.benchmark = False  # test images have many
    matrix, predictions = measure(model, backbone.meta, data, config, job, shown(data))
    if job.world.rank:
        return []
    write_text(job.folder / "confusion.csv", csv_of(matrix, data.classes))
    draw_pictures(data, predictions, job.folder / "segmentation.png")
    return metrics_of(matrix, data.classes, "val")


BENCHMARK: Benchmark[SegmentConfig, SegmentationData] = Benchmark(
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
