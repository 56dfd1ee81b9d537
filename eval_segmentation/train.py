"""The training loop: SGD with the poly schedule, killed and resumed at any moment."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD
from torch.utils.data import DataLoader, Subset

from eval_segmentation.augment import TrainCrops
from eval_segmentation.config import SegmentConfig
from eval_segmentation.loss import losses
from eval_segmentation.model import FCN
from eval_segmentation.pairs import SegmentationData
from siambench.backbone import BackboneMeta
from siambench.errors import UserError, first_line
from siambench.evaluation import Job
from siambench.features import normalise
from siambench.files import atomic_path, write_text
from siambench.progress import bar

CURVE_POINTS = 400  # of the training curve


def learning_rate(config: SegmentConfig, iteration: int) -> float:
    """The rate at ``iteration`` (from 0) of ``config.schedule``.

    Poly is (lr - min_lr) (1 - iteration / iterations)^power + min_lr, as mmengine's PolyLR.
    """
    if config.schedule == "step":
        passed = sum(iteration >= round(step * config.iterations) for step in config.steps)
        return config.lr * 0.1**passed
    left = 1 - iteration / config.iterations
    return (config.lr - config.min_lr) * left**config.poly_power + config.min_lr


def train(
    model: FCN, meta: BackboneMeta, data: SegmentationData, config: SegmentConfig, job: Job
) -> None:
    """Train ``model`` in place for ``config.iterations``, from the checkpoint if there is one.

    What an iteration draws (images, crops, dropout) depends on the seed and the iteration's number
    alone, so that on a CPU a resumed run ends in the very weights of one that was not stopped.
    Loss and learning rate go to ``curve.jsonl`` in the job's folder.

    Raises:
        UserError: the loss is no longer finite.
    """
    heads = [p for name, p in model.named_parameters() if not name.startswith("resnet.")]
    groups = [
        {"params": list(model.resnet.parameters()), "times": 1.0},
        {"params": heads, "times": config.head_lr_mult},
    ]
    optimizer = SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    start, curve = _resume(job.folder, model, optimizer, job.device)
    if start == config.iterations:
        return
    mean = [255 * level for level in meta.mean]
    crops = TrainCrops(data, config, job.seed, (mean[0], mean[1], mean[2]))
    loader = DataLoader(
        Subset(crops, range(start * config.batch_size, len(crops))),
        config.batch_size,
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )
    log_every = max(1, config.iterations // CURVE_POINTS)
    model.train()
    with bar(f"{job.title}: iterations", config.iterations, start) as progress:
        for iteration, (images, labels) in enumerate(loader, start):
            first = (job.seed * 1_000_003 + iteration) * 4096
            seeds = [2 * (first + place) % 2**63 for place in range(len(images))]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, iteration) * group["times"]
            x = normalise(images.to(job.device, non_blocking=True), meta.mean, meta.std)
            x = x.to(memory_format=torch.channels_last)
            target = labels.to(job.device, non_blocking=True).long()
            with torch.autocast(job.device.type, torch.bfloat16, enabled=config.bf16):
                logits, aux = model(x, seeds)
            found = losses(logits, aux, target, config, job.world)
            loss = torch.stack(list(found.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            done = iteration + 1
            if done % log_every == 0 or done == config.iterations:
                value = float(loss.detach())
                if value != value or value == float("inf"):
                    raise UserError(
                        f"{job.title}: the loss is {value} at iteration {done}; lower --lr "
                        f"(it is {config.lr} at batch size {config.batch_size})"
                    )
                rate = learning_rate(config, iteration)
                curve.append({"iteration": done, "lr": rate, "loss": value})
                progress.advance(loss=value)
            else:
                progress.advance()
            if done % config.checkpoint_every == 0 or done == config.iterations:
                _save(job.folder, model, optimizer, done, curve)


def checkpoint_path(folder: Path) -> Path:
    """Where :func:`train` keeps its state; the caller deletes it when the result is written down."""
    return folder / "checkpoint.pt"


def _save(
    folder: Path, model: FCN, optimizer: SGD, iteration: int, curve: list[dict[str, Any]]
) -> None:
    state = {
        "iteration": iteration,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curve": curve,
    }
    with atomic_path(checkpoint_path(folder)) as temporary:
        torch.save(state, temporary)
    write_text(folder / "curve.jsonl", "".join(json.dumps(point) + "\n" for point in curve))


def _resume(
    folder: Path, model: FCN, optimizer: SGD, device: torch.device
) -> tuple[int, list[dict[str, Any]]]:
    """Iterations done and the curve so far.

    Raises:
        UserError: there is a checkpoint and it cannot be read.
    """
    path = checkpoint_path(folder)
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["iteration"]), list(state["curve"])
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = first_line(error)
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}); delete it to train from the start"
        ) from None
