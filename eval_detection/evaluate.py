"""``siambench detect``: train, find objects in the test set, and measure average precision."""

import json
from pathlib import Path

import torch.distributed as dist

from eval_detection.coco import open_coco
from eval_detection.config import VERSION, DetectConfig, check_config
from eval_detection.engines import detect, engine_of
from eval_detection.metrics import measure
from eval_detection.pictures import draw_pictures
from eval_detection.samples import DetectionData
from eval_detection.search import choose_rate, hold_out
from eval_detection.voc import open_voc
from siambench.backbone import Backbone
from siambench.errors import Diverged, UserError
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.files import write_text
from siambench.progress import say
from siambench.record import Metric, Record


def run(config: DetectConfig) -> list[Record]:
    """Run the trials that have no record yet, print AP, AP50 and AP75, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        for metric in record.metrics:
            if metric.name in ("box_AP", "mask_AP"):
                kind, rule = metric.name.split("_")[0], metric.params["rule"]
                values = [record.metric(f"{kind}_{m}", rule=rule) for m in ("AP", "AP50", "AP75")]
                shown = "  ".join(
                    f"{m} {v:.2f}" for m, v in zip(("AP", "AP50", "AP75"), values, strict=True)
                )
                name = record.backbone["name"]
                print(f"{record.benchmark} {name} #{record.trial}: {kind} {rule}  {shown}")
    return records


def open_data(config: DetectConfig) -> DetectionData:
    """Check the protocol, then read and check the data.

    Raises:
        UserError: either is wrong.
    """
    check_config(config)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if config.batch_size % processes:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes; choose a multiple"
        )
    data = open_voc(config) if config.format == "voc" else open_coco(config)
    if len(config.rates) > 1:
        hold_out(data, config.holdout, config.seed)  # refuses what cannot be searched on
    return data


def evaluate(
    backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job
) -> list[Metric]:
    """Choose the learning rate if there are several, train on ``data.train``, test on ``data.test``.

    Predictions, curves and, until the record is written, the checkpoint stay in ``job.folder``.
    """
    config, searched = choose_rate(backbone, data, config, job)
    schedule = config.schedule()
    steps = ", ".join(map(str, schedule.steps)) or "none"
    if beyond := [step for step in schedule.steps if step >= schedule.max_iter]:
        steps += f" (never reached: {', '.join(map(str, beyond))})"
    say(
        f"{job.title}: batch {config.batch_size}, learning rate {schedule.lr:g}, "
        f"{schedule.max_iter} iterations, steps at {steps}, warm-up {schedule.warmup_iters}"
    )
    try:
        results = detect(backbone, data, config, job)
    except Diverged as error:
        raise job.world.problem(str(error)) from None
    if job.world.rank:
        return []
    write_text(job.folder / "predictions.json", json.dumps(results))
    measured = measure(data, results, masks=config.mask)
    write_text(job.folder / "precision.json", json.dumps(measured.curves))
    draw_pictures(data, results, job.folder / "detections.png")
    split = measured.metrics[0].split
    return [
        *measured.metrics,
        *_by_detectron2(job.folder / "detectron2.json", split),
        *searched,
        Metric("lr", schedule.lr, unit="", split="train"),
        Metric("iterations", schedule.max_iter, unit="", split="train"),
    ]


def _by_detectron2(path: Path, split: str) -> list[Metric]:
    """What detectron2's own evaluators say, where it was the engine and they could be used."""
    if not path.exists():
        return []
    scores = json.loads(path.read_text(encoding="utf-8"))
    return [Metric(f"{name}_detectron2", value, split=split) for name, value in scores.items()]


BENCHMARK: Benchmark[DetectConfig, DetectionData] = Benchmark(
    verb="detect",
    version=VERSION,
    engine=engine_of,
    open_data=open_data,
    evaluate=evaluate,
    parallel=lambda config: "steps",
)
