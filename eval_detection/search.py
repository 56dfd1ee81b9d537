"""The learning rate chosen on a held-out part of the training set, as SimSiam's authors searched it per method."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval_detection.config import VERSION, DetectConfig
from eval_detection.engines import detect, engine_of
from eval_detection.metrics import measure
from eval_detection.samples import DetectionData
from siambench.backbone import Backbone
from siambench.config import protocol_of
from siambench.errors import Diverged, UserError
from siambench.evaluation import Job
from siambench.files import digest_of, write_text
from siambench.progress import say
from siambench.record import Metric

Scores = dict[str, float]  # box_AP and, with masks, mask_AP; empty for a rate that diverged


def choose_rate(
    backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job
) -> tuple[DetectConfig, list[Metric]]:
    """``config`` with the best of its rates by box AP, of equals the first, and every rate's scores.

    Each rate trains on the images that are not held out, for the whole schedule. The search is the
    same for all trials (it uses trial 0's seed), lies in a folder that they share, and is done once:
    a rate that is done is not done again.

    Raises:
        UserError: the training set has one image, or every rate diverged.
    """
    if len(config.rates) == 1:
        return config.at_rate(config.rates[0]), []
    seed = job.seed - job.trial
    parts = hold_out(data, config.holdout, seed)
    protocol = {**protocol_of(config), "lr": None, "engine": engine_of(config), "version": VERSION}
    name = digest_of([protocol, backbone.sha256, data.info.fingerprint, seed])[:12]
    folder = job.folder.parent / f"search-{backbone.name}-{name}"
    scores: dict[float, Scores] = {}
    for rate in config.rates:
        trying = replace(
            job,
            seed=seed,
            trial=0,
            folder=folder / f"lr-{rate!r}",
            title=f"{job.title}, held out, lr {rate:g}",
        )
        scores[rate] = _score(backbone, parts, config.at_rate(rate), trying)
    if not any(scores.values()):
        raise job.world.problem(
            f"detect: training diverged at every rate of lr ({config.lr}); give lower ones"
        )
    best = max(config.rates, key=lambda rate: scores[rate].get("box_AP", -1.0))
    say(f"{job.title}: learning rate {best:g} of {', '.join(f'{r:g}' for r in config.rates)}")
    metrics = [
        Metric(f"{name}_holdout", value, split="holdout", params={"lr": rate})
        for rate, row in scores.items()
        for name, value in row.items()
    ]
    return config.at_rate(best), metrics


def hold_out(data: DetectionData, fraction: float, seed: int) -> DetectionData:
    """``data`` with a random part of its training images as test set, and no longer trained on.

    Raises:
        UserError: there are not two training images, or nothing in those held out counts.
    """
    count = len(data.train)
    if count < 2:
        raise UserError(
            "detect: one training image is too few to hold some out; give --lr one rate"
        )
    held = np.random.default_rng((seed, 2)).permutation(count)
    held = np.sort(held[: min(max(round(fraction * count), 1), count - 1)])
    kept = np.setdiff1d(np.arange(count), held)
    if all(data.train[i].difficult.all() for i in held):
        raise UserError(
            f"detect: every object of the {len(held)} held-out images is difficult; raise --holdout "
            f"({fraction}), or give --lr one rate"
        )
    return replace(
        data,
        train=[data.train[i] for i in kept],
        test=[data.train[i] for i in held],
        test_json=data.train_json,
        test_left_out=data.train_left_out,
    )


def _score(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> Scores:
    """The rate's scores on the held-out images, from ``job.folder`` where it is done already."""
    path = job.folder / "scores.json"
    done: Scores | None = job.world.from_first(lambda: _read(path))
    if done is not None:
        return done
    try:
        results = detect(backbone, data, config, job)
    except Diverged as error:
        say(f"{job.title}: {error}")
        results = None

    def write() -> Scores:
        scores: Scores = {}
        if results is not None:
            scores = _main_scores(measure(data, results, masks=config.mask).metrics)
        write_text(path, json.dumps(scores))
        for weights in job.folder.glob("*.pth"):
            weights.unlink(missing_ok=True)
        return scores

    return job.world.from_first(write)


def _read(path: Path) -> Scores | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _main_scores(metrics: Sequence[Metric]) -> Scores:
    """Box and mask AP; of VOC's two rules the first, the one that tables of VOC 2007 use."""
    scores: Scores = {}
    for metric in metrics:
        if metric.name in ("box_AP", "mask_AP"):
            scores.setdefault(metric.name, metric.value)
    return scores
