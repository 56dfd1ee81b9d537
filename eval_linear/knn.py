"""kNN: classify val by the most similar training images in the backbone's feature space."""

import sys

import torch

from eval_linear import VERBS
from eval_linear.config import KnnConfig
from eval_linear.folders import Folders, open_folders
from eval_linear.roads import discard_stored, stored
from siambench.backbone import Backbone
from siambench.cli import run_verb
from siambench.errors import UserError
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.features import ImageFiles, center_crop_transform, extract
from siambench.knn import knn_accuracy
from siambench.record import Metric, Record


def open_data(config: KnnConfig) -> Folders:
    """Check the protocol and read the folders.

    Raises:
        UserError: a k below 1 or above the number of training images, a temperature that is not
            positive, a crop larger than the image, or as :func:`open_folders`.
    """
    if not 1 <= config.crop <= config.resize:
        raise UserError("knn: crop must be at least 1 and at most resize")
    if not config.temperature or min(config.temperature) <= 0:
        raise UserError("knn: name at least one temperature, all positive, e.g. 0.07")
    data = open_folders(config.data, config.skip_bad)
    if not config.k or min(config.k) < 1 or max(config.k) > len(data.train):
        raise UserError(
            f"knn: k {config.k} with {len(data.train)} images in {config.data}/train; every k must "
            "be between 1 and their number"
        )
    return data


def evaluate(backbone: Backbone, data: Folders, config: KnnConfig, job: Job) -> list[Metric]:
    """Extract the pooled features of both splits, search once, vote for every k and T.

    Returns:
        ``top1`` on val, in %, with params ``{"k": ..., "T": ...}``.
    """
    transform = center_crop_transform(config.resize, config.crop)
    features = {
        split: stored(
            job.folder / f"features-{split}.npy",
            lambda split=split: extract(
                backbone.features,
                ImageFiles(data.paths(split), transform),
                mean=backbone.meta.mean,
                std=backbone.meta.std,
                device=job.device,
                workers=job.workers,
                title=f"{job.title}: features of {split}",
            ),
        )
        for split in ("train", "val")
    }
    accuracy = knn_accuracy(
        features["train"],
        data.labels("train"),
        features["val"],
        data.labels("val"),
        ks=config.k,
        temperatures=config.temperature,
        device=torch.device(job.device),
    )
    discard_stored(job.folder)
    return [
        Metric("top1", a, split="val", params={"k": k, "T": t}) for (k, t), a in accuracy.items()
    ]


BENCHMARK = Benchmark(
    "knn", 1, "faiss on CPU, torch on GPU", open_data, evaluate, seeded=lambda config: False
)


def run(config: KnnConfig) -> list[Record]:
    """The ``knn`` verb: evaluate, print a table, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        print(f"{record.benchmark}  {record.backbone['name']}  {record.dataset.name}")
        print(f"{'k':>6}{'T':>8}{'top-1':>8}")
        for k in config.k:
            for t in config.temperature:
                print(f"{k:>6}{t:>8g}{record.metric('top1', k=k, T=t):8.2f}")
    return records


if __name__ == "__main__":
    sys.exit(run_verb(VERBS["knn"]))
