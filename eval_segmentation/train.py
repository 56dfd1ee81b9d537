"""Fine-tuning an FCN: SGD with a schedule, killed and resumed at any moment, by any number of processes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from eval_segmentation.augment import TrainCrops
from eval_segmentation.config import SegmentConfig
from eval_segmentation.loss import losses
from eval_segmentation.model import FCN
from eval_segmentation.pairs import SegmentationData
from siambench.backbone import Backbone, BackboneMeta
from siambench.curve import EVERY, Curve
from siambench.distributed import sync_batchnorm
from siambench.evaluation import Job
from siambench.features import normalise
from siambench.progress import bar, say
from siambench.resume import resume, save
from siambench.signals import leave_to_parent, stop_requests, stop_saved
from siambench.watch import Watch


def train(backbone: Backbone, data: SegmentationData, config: SegmentConfig, job: Job) -> FCN:
    """Train an FCN from ``backbone``, or go on from the checkpoint in ``job.folder``.

    What an iteration draws (images, crops, dropout) depends on the seed and the iteration's number
    alone, so that a run that was killed, or asked to stop, ends, on a CPU, as one that was not; and one in several
    processes, each with its part of every batch, as one in a single process, but for rounding. The
    host waits for a GPU's losses every few iterations only.

    Returns:
        The FCN in evaluation mode.

    Raises:
        Diverged: a loss or weight is not finite; in every process.
    """
    checkpoint, first = job.folder / "checkpoint.pth", job.world.rank == 0
    model, optimizer, start = resume(
        checkpoint, job.world, lambda: _untrained(backbone, len(data.classes), config, job)
    )
    if start:
        say(f"going on from iteration {start}")
    if start == config.iterations:  # killed in the test
        return model.eval()
    parallel = job.world.parallel(model)
    watch = Watch(
        job.world, job.device, "segment", f"lower lr ({config.lr:g} at batch {config.batch_size})"
    )
    curve = Curve(job.folder / "curve.jsonl", start) if first else None
    batches = _batches(data, backbone.meta, config, job, start)
    shown = bar(f"{job.title}: iterations", config.iterations, start)
    with stop_requests() as asked, shown as progress:
        for iteration, (images, labels, seeds) in enumerate(batches, start):
            rate = learning_rate(config, iteration)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"]
            with torch.autocast(job.device.type, torch.bfloat16, enabled=config.bf16):
                logits, aux = parallel(images, seeds)
            found = losses(logits, aux, labels, config, job.world)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(found.values())).sum().backward()
            optimizer.step()
            watch.add(found)
            done = iteration + 1
            stop = job.world.any(bool(asked))
            keep = stop or done % config.checkpoint_every == 0 or done == config.iterations
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
    return model.eval()


def learning_rate(config: SegmentConfig, iteration: int) -> float:
    """The rate at ``iteration`` (from 0) of ``config.schedule``.

    Poly is (lr - min_lr) (1 - iteration / iterations)^power + min_lr, as mmcv's PolyLrUpdaterHook
    (mmselfsup 0.x); mmengine's PolyLR divides by iterations - 1.
    """
    if config.schedule == "step":
        passed = sum(iteration >= round(step * config.iterations) for step in config.steps)
        return config.lr * 0.1**passed
    left = 1 - iteration / config.iterations
    return (config.lr - config.min_lr) * left**config.poly_power + config.min_lr


def _untrained(
    backbone: Backbone, classes: int, config: SegmentConfig, job: Job
) -> tuple[FCN, SGD]:
    """The FCN as it is before the first iteration, and its optimizer."""
    torch.manual_seed(job.seed)
    model = FCN(backbone, classes, config)
    model = model.to(job.device, memory_format=torch.channels_last).train()
    sync_batchnorm(model, job.world)
    heads = [p for name, p in model.named_parameters() if not name.startswith("resnet.")]
    groups = [
        {"params": list(model.resnet.parameters()), "times": 1.0},
        {"params": heads, "times": config.head_lr_mult},
    ]
    decay = config.weight_decay
    return model, SGD(groups, config.lr, momentum=config.momentum, weight_decay=decay, fused=True)


def _batches(
    data: SegmentationData, meta: BackboneMeta, config: SegmentConfig, job: Job, start: int
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """This process's parts of the batches from ``start`` on, on the device.

    Yields:
        Normalised images (n, 3, crop, crop) in channels_last, labels (n, crop, crop) int64, and a
        seed per image, from its place in the whole batch.
    """
    part = config.batch_size // job.world.size
    mine = range(job.world.rank * part, (job.world.rank + 1) * part)
    red, green, blue = (255 * level for level in meta.mean)
    iterations = range(start, config.iterations)
    loader = DataLoader(
        TrainCrops(data, config, job.seed, (red, green, blue)),
        batch_sampler=([i * config.batch_size + place for place in mine] for i in iterations),  # type: ignore[arg-type]
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
        worker_init_fn=leave_to_parent,
    )
    for iteration, (images, labels) in zip(iterations, loader, strict=True):
        first = (job.seed * 1_000_003 + iteration) * 4096
        seeds = [2 * (first + place) % 2**63 for place in mine]
        x = normalise(images.to(job.device, non_blocking=True), meta.mean, meta.std)
        target = labels.to(job.device, non_blocking=True).long()
        yield x.to(memory_format=torch.channels_last), target, seeds
