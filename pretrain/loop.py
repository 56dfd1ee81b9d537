"""The pre-training loop: epochs of steps, a checkpoint and a monitor line after each epoch."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pretrain.checkpoint import checkpoint_path, load_latest, recipe, save_checkpoint
from pretrain.colour import BatchAugment
from pretrain.config import PretrainConfig, check_config
from pretrain.crops import Crops
from pretrain.methods import Method, build_method
from pretrain.monitors import KnnMonitor, output_std
from pretrain.order import EpochOrder
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD
from siambench.data.images import describe, read_image_folder
from siambench.device import pick_device, seed_everything, share_cores
from siambench.errors import UserError
from siambench.features import standardise
from siambench.files import write_text
from siambench.progress import Bar, bar, say


def run(config: PretrainConfig) -> Path:
    """Pre-train, or go on with what ``config.out`` holds; return the last checkpoint's path.

    Raises:
        UserError: bad data or settings (before the first step), or a loss that is not finite.
    """
    check_config(config)
    device, out = pick_device(config.device), Path(config.out)
    workers = share_cores(config.workers, device)
    train = read_image_folder(config.data, "train", skip_bad=config.skip_bad)
    splits = {"train": train}
    if config.knn_every:
        splits["val"] = read_image_folder(
            config.data, "val", skip_bad=config.skip_bad, classes=train.classes
        )
    if config.batch_size > len(train):
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {len(train)} training images of "
            f"{config.data}; lower --batch_size"
        )
    seed_everything(config.seed)
    method = build_method(config, len(train.classes)).to(device, memory_format=torch.channels_last)
    lr = config.base_lr * config.batch_size / 256
    optimizer = torch.optim.SGD(
        method.param_groups(), lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    wanted = recipe(config, describe(config.data, splits).fingerprint)
    history: list[dict[str, Any]] = []
    start = 0
    if (state := load_latest(out, wanted)) is not None:
        method.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        history, start = state["history"], state["epoch"]
        write_monitor(out, history)  # a kill right after the checkpoint left it a line behind
        say(f"resuming {out} after epoch {start} of {config.epochs}")
    if start >= config.epochs:
        return checkpoint_path(out, start)

    crops = Crops(train, config.augment, method.views, config.seed)
    order = EpochOrder(len(train), config.seed)
    loader: DataLoader[Any] = DataLoader(
        crops,
        config.batch_size,
        sampler=order,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    knn = KnnMonitor(train, splits["val"], config, device) if config.knn_every else None
    steps = len(loader)
    say(
        f"{config.method} {config.arch}: {len(train)} images, batch {config.batch_size}, learning "
        f"rate {config.base_lr} x {config.batch_size}/256 = {lr:g}, {config.epochs} epochs of "
        f"{steps} steps on {device}"
    )
    with bar(f"pretrain {config.method}", config.epochs * steps, start * steps) as progress:
        for epoch in range(start, config.epochs):
            order.set_epoch(epoch)
            line = train_epoch(method, optimizer, loader, epoch, lr, config, device, progress)
            last = epoch + 1 == config.epochs
            if knn and (last or (epoch + 1) % config.knn_every == 0):
                line["knn_top1"] = knn(method.backbone, workers)
            history.append(line)
            path = save_checkpoint(
                out,
                epoch + 1,
                {
                    "method": method.label,
                    "arch": config.arch,
                    "recipe": wanted,
                    "history": history,
                    "state_dict": method.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
            )
            write_monitor(out, history)
    return path


def write_monitor(out: Path, history: list[dict[str, Any]]) -> None:
    """Write ``out``/monitor.jsonl whole, one line per finished epoch."""
    write_text(out / "monitor.jsonl", "".join(json.dumps(line) + "\n" for line in history))


def train_epoch(
    method: Method,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    epoch: int,
    lr: float,
    config: PretrainConfig,
    device: torch.device,
    progress: Bar,
) -> dict[str, Any]:
    """One pass over the images; the monitor line of the epoch.

    Raises:
        UserError: the epoch's mean loss is not finite.
    """
    method.train()
    augment = BatchAugment(config.augment)
    generator = torch.Generator(device)
    loss_sum, std_sum = torch.zeros((), device=device), torch.zeros((), device=device)
    steps, start = len(loader), time.monotonic()
    has_std = False
    for step, (crops, labels) in enumerate(loader):
        set_lr(optimizer, lr, epoch, step, steps, config)
        generator.manual_seed(step_seed(config.seed, epoch, step))
        crops, labels = crops.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        views = [
            standardise(augment(crops[:, v], generator), IMAGENET_MEAN, IMAGENET_STD)
            for v in range(method.views)
        ]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            loss, z = method(views, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        loss_sum += loss.detach()
        if z is not None:
            std_sum += output_std(z)
            has_std = True
        if step % 20 == 19 or step + 1 == steps:
            progress.advance(step % 20 + 1, epoch=str(epoch + 1), loss=loss_sum.item() / (step + 1))
    mean_loss = loss_sum.item() / steps
    if not math.isfinite(mean_loss):
        raise UserError(
            f"the loss is {mean_loss} in epoch {epoch + 1}; the checkpoint of epoch {epoch} in "
            f"{config.out} is the last good one; try a lower --base_lr or a --warmup_epochs"
        )
    return {
        "epoch": epoch + 1,
        "step": (epoch + 1) * steps,
        "loss": mean_loss,
        "std": std_sum.item() / steps if has_std else None,
        "std_target": config.dim**-0.5,
        "lr": optimizer.param_groups[0]["lr"],
        "knn_top1": None,
        "seconds": round(time.monotonic() - start, 3),
    }


def set_lr(
    optimizer: torch.optim.Optimizer,
    lr: float,
    epoch: int,
    step: int,
    steps: int,
    config: PretrainConfig,
) -> None:
    """Cosine decay stepped per epoch (facebookresearch/simsiam, main_simsiam.py), after a warm-up.

    The warm-up is linear and per step (paper, section 4.2: ten epochs for batches of 1,024 and
    more) and for every group: one with ``fix_lr`` rises with the others, then keeps ``lr``.
    """
    warm = config.warmup_epochs
    if epoch < warm:
        now = lr * (epoch * steps + step + 1) / (warm * steps)
    else:
        now = lr * 0.5 * (1 + math.cos(math.pi * (epoch - warm) / (config.epochs - warm)))
    for group in optimizer.param_groups:
        group["lr"] = lr if group["fix_lr"] and epoch >= warm else now


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of one step's colour draws: the same after a restart."""
    return int(np.random.SeedSequence([seed, 2, epoch, step]).generate_state(1, np.uint64)[0] >> 1)
