"""kNN: classify test images by the most similar training images in the backbone's feature space."""

import sys

import numpy as np

from eval_linear import VERBS
from eval_linear.checks import check_knn, warn_of_enlarging
from eval_linear.config import KnnConfig
from eval_linear.results import as_metrics, class_metrics, keep_answers, top1_interval
from siambench.backbone import Backbone
from siambench.cache import cached_features
from siambench.cli import run_verb
from siambench.data.classification import Classification, open_classification
from siambench.device import pick_device
from siambench.errors import UserError
from siambench.evaluation import Benchmark, Job, run_evaluation
from siambench.features import ImageFiles, LayerFeatures, center_crop_transform
from siambench.knn import knn_predictions
from siambench.nearest import check_search
from siambench.progress import say
from siambench.record import Metric, Record, record_path


def open_data(config: KnnConfig) -> Classification:
    """Check the protocol and open the data.

    Raises:
        UserError: a k below 1 or above the number of neighbours there are, a temperature that is not
            positive, a crop larger than the image, a search that the device cannot do, images with
            several labels, or as :func:`open_classification`.
    """
    check_knn(config)
    check_search(config.search, pick_device(config.device))
    data = open_classification(
        config.data, skip_bad=config.skip_bad, download=config.download, flat="same"
    )
    if data.multilabel:
        raise UserError(
            f"knn: {config.data} has several labels per image, which kNN's votes are not defined "
            "for; use linear or svm"
        )
    most = len(data.train.labels) - data.same
    if max(config.k) > most:
        raise UserError(
            f"knn: k {config.k} with {most} possible neighbours in {config.data}; every k must be "
            "between 1 and their number; choose others, e.g. --k 10,20"
        )
    if data.same:
        say(f"each of the {most + 1:,} images is classified by the others")
    warn_of_enlarging(data, config.resize, config.crop)
    return data


def evaluate(backbone: Backbone, data: Classification, config: KnnConfig, job: Job) -> list[Metric]:
    """Features of both splits from the cache, one search, votes for every k and T.

    Returns:
        On the test split, in %, with params ``{"k": ..., "T": ...}``: ``top1`` with its 95 % interval,
        ``top5`` and ``top1_mean_class``; ``top1_class`` for the first k and T. The split is ``train``
        where every image was left out of its own neighbours.
    """
    transform = center_crop_transform(config.resize, config.crop)
    pictures = {"train": ImageFiles(data.train.images, transform)}
    if not data.same:
        pictures["test"] = ImageFiles(data.test.images, transform)
    encoder = LayerFeatures(backbone, ["avgpool"], config.crop, config.precision)
    tables = cached_features(encoder, pictures, config.storage, job)
    if job.world.rank:
        return []  # the first process has all that is needed
    labels, split = data.test.labels, (data.train if data.same else data.test).name
    predictions = knn_predictions(
        tables["train", "avgpool"],
        data.train.labels,
        tables["train" if data.same else "test", "avgpool"],
        ks=config.k,
        temperatures=config.temperature,
        classes=len(data.classes),
        device=job.device,
        search=config.search,
        exclude_self=data.same,
    )
    metrics = []
    for (k, t), ranked in predictions.items():
        right = ranked[:, 0] == labels
        counts = np.bincount(labels, minlength=len(data.classes))
        with np.errstate(invalid="ignore"):
            per_class = 100 * np.bincount(labels, right, len(data.classes)) / counts
        values = {
            "top1": 100 * float(right.mean()),
            **top1_interval(int(right.sum()), len(labels), seed=0),
            "top5": 100 * float((ranked == labels[:, None]).any(axis=1).mean()),
            "top1_mean_class": float(np.nanmean(per_class)),
        }
        params = {"k": k, "T": t}
        metrics += as_metrics(values, split, params)
        if (k, t) == (config.k[0], config.temperature[0]):
            metrics += class_metrics("top1_class", per_class, data.classes, split, params)
            names = map(data.test.images.name, range(len(labels)))
            keep_answers(job.folder, names, data.classes, labels, ranked[:, 0], None)
    return metrics


BENCHMARK = Benchmark(
    "knn",
    2,
    lambda config: "faiss on CPU, torch on GPU",
    open_data,
    evaluate,
    seeded=lambda config: False,
    parallel=lambda config: "features",
)


def run(config: KnnConfig) -> list[Record]:
    """The ``knn`` verb: evaluate, print a table, return the records."""
    records = run_evaluation(BENCHMARK, config)
    for record in records:
        print(f"{record.benchmark}  {record.backbone['name']}  {record.dataset.name}")
        print(f"{'k':>6}{'T':>8}{'top-1':>8}{'95 % interval':>18}{'top-5':>8}{'class mean':>12}")
        for k in config.k:
            for t in config.temperature:
                top1, low, high, top5, mean = (
                    record.metric(name, k=k, T=t)
                    for name in ("top1", "top1_ci_low", "top1_ci_high", "top5", "top1_mean_class")
                )
                interval = f"{low:.2f} to {high:.2f}"
                print(f"{k:>6}{t:>8g}{top1:8.2f}{interval:>18}{top5:8.2f}{mean:12.2f}")
        print(f"record    {record_path(config.out, record)} ({record.seconds:.0f} s)")
    return records


if __name__ == "__main__":
    sys.exit(run_verb(VERBS["knn"]))
