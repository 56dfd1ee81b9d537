"""Fine-tuning: SGD with warm-up and steps, checkpoints, and batch norm statistics made precise."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eval_detection.config import DetectConfig, Schedule
from eval_detection.samples import DetectionData
from eval_detection.torchvision_engine.detector import Detector
from eval_detection.torchvision_engine.loader import (
    Batch,
    Normalise,
    TrainBatches,
    TrainImages,
    draws,
)
from eval_detection.torchvision_engine.network import build_detector
from eval_detection.torchvision_engine.precise_bn import batch_norms, precise_bn
from siambench.backbone import Backbone
from siambench.curve import EVERY, Curve
from siambench.distributed import sync_batchnorm
from siambench.evaluation import Job
from siambench.progress import bar, say
from siambench.resnet import build_resnet
from siambench.resume import resume, save
from siambench.signals import leave_to_parent, stop_requests, stop_saved
from siambench.watch import Watch

_WARMUP_FACTOR = 1e-3  # detectron2, SOLVER.WARMUP_FACTOR
_GAMMA = 0.1  # SOLVER.GAMMA


def train(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> Detector:
    """Train a detector from ``backbone``, or go on from the checkpoint in ``job.folder``.

    The batches, the augmentation and the sampling of anchors and proposals depend on the seed and
    the iteration only, so that a run that was killed ends, on a CPU, as one that was not; and one
    in several processes, each with its part of every batch, as one in a single process, but for
    rounding. The host waits for a GPU's losses every few iterations only.

    Returns:
        The detector in evaluation mode, its batch norm statistics made precise.

    Raises:
        Diverged: a loss or weight is not finite; in every process.
    """
    checkpoint, first = job.folder / "checkpoint.pth", job.world.rank == 0
    schedule = config.schedule()
    last, total = schedule.max_iter, schedule.max_iter + config.precise_bn_iters
    model, optimizer, start = resume(
        checkpoint, job.world, lambda: _untrained(backbone, len(data.classes), config, job)
    )
    if start:
        say(f"going on from iteration {min(start, last)}")
    if start == total:  # killed in the test
        return model.eval()
    parallel = job.world.parallel(model, static=False)
    losses_of = _losses_of(backbone, config, job)
    batches = enumerate(_batches(data, config, job, model.divisible, start, total), start)
    advice = f"lower lr ({schedule.lr:g} at this batch) or lengthen warmup_iters ({schedule.warmup_iters})"
    watch = Watch(job.world, job.device, "detect", advice)
    curve = Curve(job.folder / "curve.jsonl", start) if first else None
    shown = bar(f"{job.title}: iterations", last, start)
    with stop_requests() as asked, shown as progress:
        for iteration, batch in islice(batches, last - start):
            rate = learning_rate(schedule, iteration)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = losses_of(parallel, batch, iteration)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            watch.add(losses)
            done = iteration + 1
            stop = job.world.any(bool(asked))
            keep = stop or done % config.checkpoint_every == 0 or done == last
            seen = {}
            if keep or done % EVERY == 0:
                values = watch.look(done)
                seen = {"loss": sum(values.values())}
                if curve:
                    curve.add(done, rate, values)
            progress.advance(**seen)
            if keep:
                watch.check(model, done)
                if first:
                    save(checkpoint, model, optimizer, done)
            if stop:
                stop_saved(asked, job.world, f"{job.title}: iteration {done}")
    if config.precise_bn_iters:
        precise_bn(model, (lambda i=i, b=b: losses_of(model, b, i) for i, b in batches), job.world)
        watch.check(model, last)
        if first:
            save(checkpoint, model, optimizer, total)
    return model.eval()


def learning_rate(schedule: Schedule, iteration: int) -> float:
    """The rate at ``iteration`` (from 0): linear warm-up, then a tenth after every step."""
    rate = schedule.lr * _GAMMA ** sum(iteration >= step for step in schedule.steps)
    if iteration < schedule.warmup_iters:
        rate *= _WARMUP_FACTOR + (1 - _WARMUP_FACTOR) * iteration / schedule.warmup_iters
    return rate


def _untrained(
    backbone: Backbone, classes: int, config: DetectConfig, job: Job
) -> tuple[Detector, torch.optim.SGD]:
    """The detector as it is before the first iteration, and its optimizer."""
    torch.manual_seed(job.seed)
    resnet = build_resnet(backbone.meta.arch)
    resnet.load_state_dict(backbone.resnet.state_dict())
    model = build_detector(resnet, classes, config)
    model = model.to(job.device, memory_format=torch.channels_last).train()
    model.world = job.world
    sync_batchnorm(model, job.world)
    return model, _optimizer(model, config)


def _optimizer(model: nn.Module, config: DetectConfig) -> torch.optim.SGD:
    """SGD of what is trained, without weight decay on batch norms (SOLVER.WEIGHT_DECAY_NORM 0)."""
    norms = [p for norm in batch_norms(model) for p in norm.parameters()]
    ids = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": [p for p in others if p.requires_grad], "weight_decay": config.weight_decay},
        {"params": [p for p in norms if p.requires_grad], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, config.schedule().lr, momentum=config.momentum, fused=True)


def _losses_of(
    backbone: Backbone, config: DetectConfig, job: Job
) -> Callable[[nn.Module, Batch, int], dict[str, Tensor]]:
    """The function from a network, this process's part of a batch and its iteration to the losses."""
    normalise = Normalise(backbone.meta.mean, backbone.meta.std, job.device)
    autocast = torch.autocast(job.device.type, torch.bfloat16) if config.bf16 else nullcontext()

    def losses_of(network: nn.Module, batch: Batch, iteration: int) -> dict[str, Tensor]:
        count = len(batch.sizes)
        place = job.world.rank * count  # in the whole batch, of the part's first image
        seed = (job.seed * 1_000_003 + iteration) * 4096
        seeds = [(seed + place + i) % 2**63 for i in range(count)]
        images = normalise(batch.pixels, batch.sizes)
        with autocast:
            losses: dict[str, Tensor] = network(
                images, batch.sizes, batch.targets(job.device), seeds
            )
        return losses

    return losses_of


def _batches(
    data: DetectionData, config: DetectConfig, job: Job, divisible: int, start: int, stop: int
) -> Iterator[Batch]:
    """This process's parts of the batches ``start`` to ``stop`` of the run."""
    images = TrainImages(data.train, config, job.seed)
    loader = DataLoader(
        TrainBatches(images, divisible, job.world.rank, job.world.size),
        batch_size=None,  # the dataset makes batches
        sampler=islice(draws(data.train, config.batch_size, job.seed), start, stop),
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
        worker_init_fn=leave_to_parent,
    )
    return iter(loader)
