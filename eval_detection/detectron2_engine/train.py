"""Fine-tuning with detectron2's trainer, optimizer, schedule and PreciseBN."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

import eval_detection.detectron2_engine.heads  # noqa: F401 - registers what settings.py names
from eval_detection.config import DetectConfig
from eval_detection.detectron2_engine.data import packed, train_loader
from eval_detection.detectron2_engine.weights import load_backbone
from eval_detection.samples import Sample
from siambench.backbone import Backbone
from siambench.curve import Curve
from siambench.device import seed_everything
from siambench.distributed import World
from siambench.errors import Diverged, first_line
from siambench.evaluation import Job
from siambench.files import atomic_path
from siambench.progress import Bar, bar, say
from siambench.signals import StopRequest, stop_requests, stop_saved

# Its losses under the torchvision engine's names.
_LOSSES = {
    "loss_rpn_cls": "rpn_cls",
    "loss_rpn_loc": "rpn_box",
    "loss_cls": "cls",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}


def train(
    backbone: Backbone, samples: list[Sample], config: DetectConfig, cfg: CfgNode, job: Job
) -> nn.Module:
    """Train a detector from ``backbone``, or go on from the checkpoint in ``job.folder``.

    A resumed run takes the images in the order of a new one (detectron2's TrainingSampler starts
    anew): it is not the run that was not killed, as it is with the torchvision engine.

    Returns:
        The detector, its batch norm statistics made precise.

    Raises:
        Diverged: a loss or weight is not finite; in every process.
        UserError: the backbone does not fit.
    """
    checkpoint = job.folder / "checkpoint.pth"
    saved = _read(checkpoint)
    model, run = _begin(backbone, samples, cfg, job)
    start = 0
    if not job.world.any(saved is None):
        assert saved is not None
        model.load_state_dict(saved["model"])
        run.load_state_dict(saved["trainer"])
        start = run.iter + 1
        say(f"going on from iteration {start}")
    total = cfg.SOLVER.MAX_ITER
    shown = bar(f"{job.title}: iterations", total, start)
    with stop_requests() as asked, shown as progress, quiet():
        run.register_hooks(_reports(cfg, job, start, checkpoint, progress))
        run.register_hooks([_Stop(checkpoint, job, asked)])
        try:
            if start < total:
                run.train(start, total)
        except FloatingPointError as error:
            schedule = config.schedule()
            raise Diverged(
                f"detect: {first_line(error)} Lower lr ({schedule.lr:g} at this batch) or lengthen "
                f"warmup_iters ({schedule.warmup_iters})"
            ) from None
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise Diverged(f"detect: the weights are not finite after iteration {total}; lower lr")
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """detectron2 logs warnings only, and not the traceback of an error that is raised anyway."""
    levels = {
        "detectron2": logging.WARNING,
        "fvcore": logging.WARNING,
        "detectron2.engine.train_loop": logging.CRITICAL,
        "torch.fx._symbolic_trace": logging.ERROR,  # on a function detectron2 asks, in every run
    }
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class Run(TrainerBase):
    """The parts of detectron2's DefaultTrainer that a run here consists of.

    Args:
        step: one iteration, in float32 or mixed precision.
        world: the processes, which stop together.
    """

    def __init__(self, step: SimpleTrainer, world: World) -> None:
        super().__init__()
        self.step, self.world = step, world

    def run_step(self) -> None:
        """One iteration. Process 0 alone sees the losses of all, and so tells the others."""
        self.step.iter = self.iter
        problem = ""
        try:
            self.step.run_step()
        except FloatingPointError as error:
            problem = first_line(error)
        if self.world.any(bool(problem)):
            raise FloatingPointError(problem or f"Training diverged at iteration {self.iter}.")

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks (the schedule), optimizer."""
        return {**super().state_dict(), "step": self.step.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.step.load_state_dict(state_dict["step"])


def _begin(
    backbone: Backbone, samples: list[Sample], cfg: CfgNode, job: Job
) -> tuple[nn.Module, Run]:
    """Model and trainer as they are before the first iteration."""
    seed_everything(job.seed + job.world.rank)  # the augmentations differ in all processes
    model = build_model(cfg)
    load_backbone(model, backbone)
    optimizer = build_optimizer(cfg, model)
    parallel = job.world.parallel(model, static=False)
    images = packed(samples)
    parts = (parallel, train_loader(images, cfg, job.workers), optimizer)
    if cfg.SOLVER.AMP.ENABLED:
        # bfloat16 has float32's range: no scaling of the loss
        scaler = torch.amp.GradScaler(job.device.type, enabled=False)
        run = Run(AMPTrainer(*parts, grad_scaler=scaler, precision=torch.bfloat16), job.world)
    else:
        run = Run(SimpleTrainer(*parts), job.world)
    run.register_hooks([hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer))])
    if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model):
        batches = train_loader(images, cfg, workers=0)  # its own, as in DefaultTrainer
        precise = hooks.PreciseBN(0, parallel, batches, cfg.TEST.PRECISE_BN.NUM_ITER)
        run.register_hooks([precise])
    return model, run


def _read(path: Path) -> dict[str, Any] | None:
    """The checkpoint; None where there is none or it is damaged, which is said."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {name: saved[name] for name in ("model", "trainer")}
    except Exception as error:  # whatever a damaged file raises
        say(f"{path} is damaged ({first_line(error)}); training starts anew")
        return None


def _reports(cfg: CfgNode, job: Job, start: int, checkpoint: Path, progress: Bar) -> list[HookBase]:
    """The hooks of the first process that write: behind PreciseBN, which the last checkpoint holds."""
    if job.world.rank:
        return []
    job.folder.mkdir(parents=True, exist_ok=True)
    curve = Curve(job.folder / "curve.jsonl", start)
    return [_Tell(curve, progress), _Save(checkpoint, cfg.SOLVER.CHECKPOINT_PERIOD)]


@dataclass
class _Tell(HookBase):
    """Losses to the curve and the progress bar."""

    curve: Curve
    progress: Bar

    def after_step(self) -> None:
        latest = {name: value for name, (value, _) in self.trainer.storage.latest().items()}
        losses = {ours: latest[name] for name, ours in _LOSSES.items() if name in latest}
        self.curve.add(self.trainer.iter + 1, latest["lr"], losses)
        self.progress.advance(loss=float(sum(losses.values())))


@dataclass
class _Save(HookBase):
    """Model and trainer in one file that is whole or not there (detectron2's own may be cut off)."""

    path: Path
    period: int

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            _write(self.path, self.trainer)


@dataclass
class _Stop(HookBase):
    """Asked to stop: save, and end all processes."""

    path: Path
    job: Job
    asked: StopRequest

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.job.world.any(bool(self.asked)) and done < self.trainer.max_iter:
            if self.job.world.rank == 0:
                _write(self.path, self.trainer)
            stop_saved(self.asked, self.job.world, f"{self.job.title}: iteration {done}")


def _write(path: Path, trainer: Any) -> None:
    """Model and trainer, whole or not at all."""
    model = trainer.step.model
    model = model.module if hasattr(model, "module") else model
    with atomic_path(path) as temporary:
        torch.save({"model": model.state_dict(), "trainer": trainer.state_dict()}, temporary)
