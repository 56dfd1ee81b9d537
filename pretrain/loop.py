"""The pre-training loop, as the paper's Algorithm 1."""

import math
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.checkpoint import checkpoint_path
from pretrain.config import PretrainConfig
from pretrain.folder import INTERRUPTED, held
from pretrain.methods import check as check_method
from pretrain.monitors import output_std
from pretrain.order import check_divides
from pretrain.run import Run, lay_out, open_data
from pretrain.watch import check_tensorboard
from siambench.distributed import join
from siambench.progress import bar, say
from siambench.signals import stop_requests


def run(config: PretrainConfig) -> Path:
    """Pre-train, or go on with what ``config.out`` holds; return the last checkpoint's path.

    Alone, or in the processes that torchrun started. SIGTERM, SIGUSR1 and Ctrl-C end the step, save
    and raise KeyboardInterrupt.

    Raises:
        UserError: bad data or settings (before the first step), a loss that is not finite, a
            collapse under ``on_collapse="stop"``, or another process of the run that is lost.
    """
    with join(config.device) as world, ExitStack() as stack:
        world.from_first(lambda: check(config, world.size))
        data = world.from_first(lambda: open_data(config))
        world.from_first(lambda: stack.enter_context(held(Path(config.out))))
        run = lay_out(config, world, data)
        start, clock = run.step, time.monotonic()
        run.watch.open(start)
        if start == run.total and not world.any(bool(run.knn and run.knn.at_work)):
            path = checkpoint_path(Path(config.out), config.epochs)
            say(f"pretrain {config.method}: done before: {path}")
            return path
        try:
            path = train(run)
        finally:
            run.watch.close()
        say(summary(run, path, run.step - start, time.monotonic() - clock))
        return path


def check(config: PretrainConfig, processes: int) -> None:
    """Refuse settings that cannot be meant, before the data are looked at.

    Raises:
        UserError: names the first that is wrong.
    """
    check_method(config)
    check_divides(config.batch_size, config.accumulate, processes)
    check_tensorboard(config)


def train(run: Run) -> Path:
    """Algorithm 1: views, outputs, loss, gradients, update; until ``run.total`` steps are done.

    The loop never waits for the device, except where a line or a checkpoint is due.
    """
    config, optimizer, watch = run.config, run.optimizer, run.watch
    model = run.world.parallel(run.method, static=config.accumulate == 1)
    model.train()
    stop_if_collapsed(run)
    path = checkpoint_path(Path(config.out), *divmod(run.step, run.steps))
    with stop_requests() as asked, bar(f"pretrain {config.method}", run.total, run.step) as shown:
        while run.step < run.total:
            epoch, step = divmod(run.step, run.steps)
            set_lr(optimizer, run.lr, epoch, step, run.steps, config)
            run.method.before_step(run.step)
            watch.add(*gradients(run, model))
            run.method.before_update(run.step)
            optimizer.step()
            optimizer.zero_grad()

            run.step += 1
            run.method.after_update(run.step, run.total)
            epoch_done = run.step % run.steps == 0
            if epoch_done or run.step % config.log_every == 0:
                watch.step_line(run.step, rates(optimizer), shown)
            if epoch_done:
                end_epoch(run, epoch + 1)
            stop = run.world.any(bool(asked))
            if epoch_done or stop or run.collapsed or run.step % config.checkpoint_every == 0:
                path = run.save()
            stop_if_collapsed(run)
            if stop and run.step < run.total:
                leave(run, path, asked.name)
    if run.knn and run.knn.at_work:
        run.knn.wait()
        path = run.save()
    return path


def gradients(run: Run, model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Leave the gradients of one step's batch in ``model``; its loss, and its output's std.

    A batch in ``accumulate`` parts: the mean of the parts' gradients, losses and stds.
    """
    parts = run.config.accumulate
    losses, stds = [], []
    for part in range(parts):
        batch = next(run.batches)
        alone = run.world.size == 1 or part + 1 == parts
        with nullcontext() if alone else model.no_sync():
            with torch.autocast(run.world.device.type, torch.bfloat16, enabled=run.config.bf16):
                loss, z = model(*batch)
            (loss / parts).backward()
        losses.append(loss.detach())
        if z is not None:
            stds.append(output_std(z))
    return torch.stack(losses).mean(), torch.stack(stds).mean() if stds else None


def set_lr(
    optimizer: torch.optim.Optimizer,
    lr: float,
    epoch: int,
    step: int,
    steps: int,
    config: PretrainConfig,
) -> None:
    """Cosine decay stepped per epoch (facebookresearch/simsiam, main_simsiam.py), after a warm-up.

    The warm-up is linear and per step (paper, section 4.3: ten epochs for batches of 1,024 and
    more) and for every group: one with ``fix_lr`` rises with the others, then keeps ``lr``. Other
    methods step the decay per step, end it or begin the warm-up above 0, divide the rate by ten at
    epochs instead, or scale a group's rate.
    """
    warm, first, last = config.warmup_epochs, config.warmup_start, config.final_lr
    if epoch < warm:
        now = first + (1 - first) * (epoch * steps + step + 1) / (warm * steps)
    elif config.milestones:
        now = 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
    else:
        past = epoch - warm + (step / steps if config.cosine == "step" else 0)
        now = last + (1 - last) * 0.5 * (1 + math.cos(math.pi * past / (config.epochs - warm)))
    for group in optimizer.param_groups:
        share = 1.0 if group["fix_lr"] and epoch >= warm else now
        group["lr"] = lr * share * group.get("scale", 1.0)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The backbone's learning rate; and that of a group whose rate does not decay, if there is one."""
    groups = optimizer.param_groups
    return [float(g["lr"]) for g in (groups[0], *[g for g in groups if g["fix_lr"]][:1])]


def end_epoch(run: Run, epoch: int) -> None:
    """The epoch's monitor line, and its kNN accuracy if that is due."""
    config = run.config
    run.watch.epoch_line(epoch, rates(run.optimizer)[0])
    if run.knn and (epoch == config.epochs or epoch % config.knn_every == 0):
        with run.watch.paused():
            run.knn.start(epoch, run.method.backbone)


def stop_if_collapsed(run: Run) -> None:
    """End a run whose output has collapsed, if that is what the settings ask for.

    Raises:
        UserError: it has.
    """
    if run.collapsed:
        raise run.world.problem(
            f"stopped at step {run.step}: the output has collapsed, its std under a tenth of "
            f"1/√{run.config.dim} for {run.watch.collapsed} steps; {run.config.out} holds the state; "
            "try a lower --base_lr with another --out, or go on with --on_collapse warn"
        )


def leave(run: Run, path: Path, signal: str) -> None:
    """Stop before the end of the run, when every process knows that ``path`` is written.

    A file named ``interrupted`` beside it tells schedulers that the same command goes on.

    Raises:
        KeyboardInterrupt: a signal asked for it, here or in another process.
    """
    if run.world.rank == 0:
        (path.parent / INTERRUPTED).touch()
    run.world.any(False)
    say(f"{signal or 'another process was asked to stop'}: step {run.step} is saved in {path}")
    raise KeyboardInterrupt


def summary(run: Run, path: Path, steps: int, seconds: float) -> str:
    """One line about a run that is done: how much, how fast, how it ended."""
    last = run.watch.history[-1]
    parts = [
        f"{run.config.epochs} epochs",
        f"{steps} steps in {seconds:.0f} s"
        f" ({steps * run.config.batch_size / max(seconds, 1e-9):.0f} images/s)",
        f"loss {last['loss']:.4f}",
    ]
    if last["std"] is not None:
        parts.append(f"std {last['std'] / last['std_target']:.2f} of 1/√{run.config.dim}")
    if last["knn_top1"] is not None:
        parts.append(f"kNN {last['knn_top1']:.1f} %")
    return f"pretrain {run.config.method}: {', '.join(parts)}: {path}"
