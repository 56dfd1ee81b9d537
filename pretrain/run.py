"""A run laid out: from settings and folders to what the loop works with, and back into a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain.checkpoint import checkpoint_path, load_latest, recipe, save_checkpoint
from pretrain.config import PretrainConfig
from pretrain.methods import Method, build_method
from pretrain.monitors import KnnMonitor
from pretrain.optim import build_optimizer
from pretrain.order import BatchOrder
from pretrain.views import Views, finish
from pretrain.watch import Watch
from siambench.data.images import ImageList, read_image_folder
from siambench.device import seed_everything, share_cores
from siambench.distributed import World, local_size, sync_batchnorm
from siambench.errors import UserError
from siambench.progress import say
from siambench.signals import leave_to_parent

Data = tuple[ImageList, ImageList | None, dict[str, Any]]  # train, val for the monitor, recipe
# Normalised views (N, 3, H, W) each, labels (N,), and the images' numbers (N,) if the method wants them
Batch = tuple[list[Tensor], Tensor] | tuple[list[Tensor], Tensor, Tensor]


@dataclass
class Run:
    """What the loop works with.

    Attributes:
        config: the settings.
        world: the processes.
        recipe: the part of the settings, and the data, that a checkpoint must share to be resumed.
        method: the modules and the loss.
        optimizer: of their parameters.
        lr: the learning rate at the top of the schedule.
        steps: per epoch.
        step: steps done.
        watch: lines and collapse.
        knn: the kNN monitor, in process 0.
        batches: this process's parts of the batches, from ``step`` on.
    """

    config: PretrainConfig
    world: World
    recipe: dict[str, Any]
    method: Method
    optimizer: torch.optim.Optimizer
    lr: float
    steps: int
    step: int
    watch: Watch
    knn: KnnMonitor | None
    batches: Iterator[Batch]

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps

    @property
    def collapsed(self) -> bool:
        """Whether the output has collapsed, and the settings ask to stop for that."""
        return self.watch.has_collapsed and self.config.on_collapse == "stop"

    def save(self) -> Path:
        """Write a checkpoint of the state after ``step`` steps (process 0 writes; all know the path).

        Raises:
            UserError: a loss or a weight is not finite, or the file cannot be written.
        """
        with self.watch.paused():
            return self._save()

    def _save(self) -> Path:
        self.watch.read(self.step)
        out, (epoch, step) = Path(self.config.out), divmod(self.step, self.steps)
        if self.world.rank:
            return checkpoint_path(out, epoch, step)
        weights = self.method.state_dict()
        if not all(bool(w.isfinite().all()) for w in weights.values()):
            raise UserError(self.watch.not_finite("a weight is not finite", self.step))
        if self.knn:
            self.watch.knn(self.knn.finished())
        state = {
            "method": self.method.label,
            "arch": self.config.arch,
            "recipe": self.recipe,
            "state_dict": weights,
            "optimizer": self.optimizer.state_dict(),
            "watch": self.watch.state(),
            "knn": self.knn.state() if self.knn else {},
        }
        self.watch.write_steps()
        path = save_checkpoint(out, epoch, step, state)
        self.watch.write_history()
        return path


def lay_out(config: PretrainConfig, world: World, data: Data) -> Run:
    """Build the method on ``data`` (of :func:`open_data`), take up the checkpoint if there is one.

    Raises:
        UserError: the checkpoint is another run's, or none can be read.
    """
    train, val, wanted = data
    workers = share_cores(config.workers, world.device, local_size())
    lr = config.base_lr * config.batch_size / 256
    steps = len(train) // config.batch_size
    seed_everything(config.seed)
    method = build_method(config, len(train.classes), len(train))
    method = method.to(world.device, memory_format=torch.channels_last)
    sync_batchnorm(method, world)
    optimizer = build_optimizer(method, config, lr)
    say(_summary(config, world, len(train), steps, lr))
    state = world.from_first(lambda: load_latest(Path(config.out), wanted))
    step = 0
    if state is not None:
        method.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["epoch"] * steps + state["step"]
        place = f"epoch {state['epoch']} of {config.epochs}"
        place += f", step {state['step']} of {steps}" if state["step"] else ""
        if step < config.epochs * steps:
            say(f"resuming {config.out} after {place}")
    if config.compile:
        method.compile()
    torch.backends.cudnn.benchmark = True  # batches have the same shapes
    watch = Watch(config, world, steps, state["watch"] if state else None)
    order = BatchOrder(
        len(train),
        config.batch_size,
        config.epochs,
        config.seed,
        start=step,
        accumulate=config.accumulate,
        rank=world.rank,
        size=world.size,
    )
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        Views(train, config.augment, config.views, method.views, config.seed),
        batch_sampler=order,
        num_workers=workers if len(order) else 0,
        pin_memory=world.device.type == "cuda",
        worker_init_fn=leave_to_parent,
    )
    loaded = iter(loader)  # its processes start before the monitor's thread does
    knn = None
    if val is not None and world.rank == 0:
        knn = KnnMonitor(train, val, config, world.device, workers)
        knn.resume(state["knn"] if state else {}, method.backbone)
    return Run(
        config=config,
        world=world,
        recipe=wanted,
        method=method,
        optimizer=optimizer,
        lr=lr,
        steps=steps,
        step=step,
        watch=watch,
        knn=knn,
        batches=_batches(watch.waiting(_on_device(loaded, world.device)), config, method.per_image),
    )


def open_data(config: PretrainConfig) -> Data:
    """The images of both splits (no ``val`` without the monitor), checked, and the run's recipe.

    Raises:
        UserError: the data will not do.
    """
    train = read_image_folder(config.data, "train", skip_bad=config.skip_bad)
    if config.batch_size > len(train):
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {len(train)} training images of "
            f"{config.data}; lower --batch_size"
        )
    val = None
    if config.knn_every:
        val = read_image_folder(config.data, "val", skip_bad=config.skip_bad, classes=train.classes)
    return train, val, recipe(config, train.fingerprint())


def _summary(config: PretrainConfig, world: World, images: int, steps: int, lr: float) -> str:
    pieces = f"{world.size} x " if world.size > 1 else ""
    pieces += f"{config.accumulate} x " if config.accumulate > 1 else ""
    batch = f"batch {config.batch_size}"
    if pieces:
        batch += f" = {pieces}{config.batch_size // world.size // config.accumulate}"
    return (
        f"{config.method} {config.arch}: {images} images, {batch}, learning rate {config.base_lr} x "
        f"{config.batch_size}/256 = {lr:g}, {config.epochs} epochs of {steps} steps on {world.device}"
    )


def _batches(
    loaded: Iterator[dict[str, Tensor]], config: PretrainConfig, per_image: bool
) -> Iterator[Batch]:
    """Batches on the device, their views finished there."""
    for batch in loaded:
        views = finish(batch, config.augment, config.views)
        yield (views, batch["label"], batch["image"]) if per_image else (views, batch["label"])


def _on_device(
    loader: Iterator[dict[str, Tensor]], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Batches copied to ``device``; to a GPU on a stream of its own, one batch ahead of the steps."""
    if device.type != "cuda":
        yield from loader
        return
    side = torch.cuda.Stream(device)
    ahead: list[tuple[dict[str, Tensor], torch.cuda.Event]] = []
    for batch in loader:
        with torch.cuda.stream(side):
            moved = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
            ahead.append((moved, side.record_event()))
        if len(ahead) > 1:
            yield _taken_over(*ahead.pop(0), device)
    for last in ahead:
        yield _taken_over(*last, device)


def _taken_over(
    batch: dict[str, Tensor], copied: torch.cuda.Event, device: torch.device
) -> dict[str, Tensor]:
    """``batch`` for the current stream, which waits for the copy."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for tensor in batch.values():
        tensor.record_stream(current)
    return batch
