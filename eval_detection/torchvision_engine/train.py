"""Fine-tuning: SGD with warm-up and steps, checkpoints, and batch norm statistics made precise."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eval_detection.config import DetectConfig, Schedule
from eval_detection.results import Diverged
from eval_detection.samples import DetectionData
from eval_detection.torchvision_engine.c4 import C4
from eval_detection.torchvision_engine.loader import Example, TrainImages, draws, to_batch
from eval_detection.torchvision_engine.network import build_detector
from eval_detection.torchvision_engine.precise_bn import precise_bn
from eval_detection.torchvision_engine.rpn import Target
from siambench.backbone import Backbone
from siambench.errors import first_line
from siambench.evaluation import Job
from siambench.files import atomic_path, write_text
from siambench.progress import bar, say
from siambench.resnet import build_resnet

_WARMUP_FACTOR = 1e-3  # detectron2, SOLVER.WARMUP_FACTOR
_GAMMA = 0.1  # SOLVER.GAMMA
_CURVE_EVERY = 20  # iterations between lines of curve.jsonl


def train(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> C4:
    """Train a detector from ``backbone``, or go on from the checkpoint in ``job.folder``.

    The batches, the augmentation and the sampling of anchors and proposals depend on the seed and
    the iteration only, so that a run that was killed ends, on a CPU, as one that was not.

    Returns:
        The detector in evaluation mode, its batch norm statistics made precise.

    Raises:
        Diverged: a loss is not finite.
    """
    checkpoint = job.folder / "checkpoint.pth"
    model, optimizer = _untrained(backbone, len(data.classes), config, job)
    start = _resume(checkpoint, model, optimizer)
    if start is None:  # a damaged checkpoint may have filled a part of them
        model, optimizer = _untrained(backbone, len(data.classes), config, job)
        start = 0
    schedule = config.schedule()
    curve = _Curve(job.folder / "curve.jsonl", start)
    total = schedule.max_iter + config.precise_bn_iters
    batches = enumerate(_batches(data, config, job, start, total), start)
    with bar(f"{job.title}: iterations", schedule.max_iter, start) as progress:
        for iteration, examples in islice(batches, schedule.max_iter - start):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, iteration)
            losses = _losses(model, examples, backbone, config, job, iteration)
            loss = _checked_sum(losses, iteration, schedule)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done = iteration + 1
            curve.add(done, learning_rate(schedule, iteration), losses)
            progress.advance(loss=loss.item())
            if done % config.checkpoint_every == 0 or done == schedule.max_iter:
                _save(checkpoint, model, optimizer, done)
    if config.precise_bn_iters:
        precise_bn(
            model,
            (
                lambda i=iteration, e=examples: _losses(model, e, backbone, config, job, i)
                for iteration, examples in batches
            ),
        )
    return model.eval()


def learning_rate(schedule: Schedule, iteration: int) -> float:
    """The rate at ``iteration`` (from 0): linear warm-up, then a tenth after every step."""
    rate = schedule.lr * _GAMMA ** sum(iteration >= step for step in schedule.steps)
    if iteration < schedule.warmup_iters:
        rate *= _WARMUP_FACTOR + (1 - _WARMUP_FACTOR) * iteration / schedule.warmup_iters
    return rate


def _untrained(
    backbone: Backbone, classes: int, config: DetectConfig, job: Job
) -> tuple[C4, torch.optim.SGD]:
    """The detector as it is before the first iteration, and its optimizer."""
    torch.manual_seed(job.seed)
    resnet = build_resnet(backbone.meta.arch)
    resnet.load_state_dict(backbone.resnet.state_dict())
    model = build_detector(resnet, classes, config)
    model = model.to(job.device, memory_format=torch.channels_last).train()
    return model, _optimizer(model, config)


def _losses(
    model: C4,
    examples: list[Example],
    backbone: Backbone,
    config: DetectConfig,
    job: Job,
    iteration: int,
) -> dict[str, Tensor]:
    meta = backbone.meta
    images, sizes = to_batch([image for image, _ in examples], meta.mean, meta.std, job.device)
    targets = [
        Target(t.boxes.to(job.device), t.labels.to(job.device), t.masks) for _, t in examples
    ]
    seeds = [(job.seed * 1_000_003 + iteration) * 4096 + place for place in range(len(examples))]
    with torch.autocast(job.device.type, torch.bfloat16, enabled=config.bf16):
        losses: dict[str, Tensor] = model(images, sizes, targets, seeds)
    return losses


def _checked_sum(losses: dict[str, Tensor], iteration: int, schedule: Schedule) -> Tensor:
    loss = torch.stack(list(losses.values())).sum()
    if not math.isfinite(loss.item()):
        parts = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        raise Diverged(
            f"detect: the loss is not finite at iteration {iteration} ({parts}); lower lr "
            f"({schedule.lr:g} at this batch) or lengthen warmup_iters ({schedule.warmup_iters})"
        )
    return loss


def _optimizer(model: nn.Module, config: DetectConfig) -> torch.optim.SGD:
    """SGD without weight decay on batch norms (detectron2, SOLVER.WEIGHT_DECAY_NORM 0)."""
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    ids = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": others, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.schedule().lr, momentum=config.momentum)


def _batches(
    data: DetectionData, config: DetectConfig, job: Job, start: int, stop: int
) -> Iterator[list[Example]]:
    """Batches ``start`` to ``stop`` of the run."""
    wanted = islice(draws(data.train, config.batch_size, job.seed), start, stop)
    loader = DataLoader(
        TrainImages(data.train, config, job.seed),
        batch_sampler=wanted,
        num_workers=job.workers,
        collate_fn=list,
        pin_memory=False,
    )
    return iter(loader)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": done}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int | None:
    """Load the checkpoint; the number of iterations done, or None when it is damaged."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = int(state["iteration"])
    except Exception as error:  # whatever a damaged file raises
        reason = first_line(error)
        say(f"{path} is damaged ({reason}); training starts anew")
        return None
    say(f"going on from iteration {done}")
    return done


class _Curve:
    """Losses as JSON lines; a resumed run takes back the lines after its checkpoint."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        lines = path.read_bytes().splitlines() if path.exists() and start else []
        kept = [line.decode() for line in lines if 0 < _iteration(line) <= start]
        write_text(path, "".join(line + "\n" for line in kept))

    def add(self, done: int, lr: float, losses: dict[str, Tensor]) -> None:
        if done % _CURVE_EVERY == 0:
            values = {name: round(value.item(), 5) for name, value in losses.items()}
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"iteration": done, "lr": lr, **values}) + "\n")


def _iteration(line: bytes) -> int:
    """Which iteration a line of the curve is of; 0 for one that a kill or a power cut spoilt."""
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, TypeError, KeyError):
        return 0
