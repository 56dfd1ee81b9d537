"""What a run tells: step and epoch lines, collapse, losses that are not finite, TensorBoard.

Losses and stds stay on the device until a line is due, so that the loop never waits for it.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pretrain.checkpoint import checkpoints
from pretrain.config import PretrainConfig
from siambench.distributed import World
from siambench.errors import UserError
from siambench.files import write_text
from siambench.progress import Bar, say

T = TypeVar("T")


class Watch:
    """Loss and spread of the output, from the steps to the lines.

    ``steps.jsonl`` gets a line every ``log_every`` steps and at the end of an epoch,
    ``monitor.jsonl`` one per epoch. Both are means over the steps since the last line and over
    processes. The state goes into checkpoints, so that no line is missing or double after a restart.
    """

    def __init__(
        self, config: PretrainConfig, world: World, steps: int, state: Mapping[str, Any] | None
    ) -> None:
        self.config, self.world, self.steps = config, world, steps
        self.out = Path(config.out)
        self.history: list[dict[str, Any]] = []  # lines of monitor.jsonl
        self.window: list[list[float]] = []  # (loss, std) of each step since the last step line
        self.epoch: list[float] = [0, 0.0, 0.0]  # steps, sum of losses, sum of stds of this epoch
        self.collapsed = 0  # steps in a row with a collapsed output
        if state is not None:
            self.history = [dict(line) for line in state["history"]]
            self.window = [list(pair) for pair in state["window"]]
            self.epoch, self.collapsed = list(state["epoch"]), state["collapsed"]
        self.unread: list[Tensor] = []
        self.waited = 0.0  # seconds for data since the last step line
        self.counted = 0  # steps that this process did since then
        self.clock = time.monotonic()
        self.epoch_clock = self.clock - (state["seconds"] if state is not None else 0.0)
        self.board: Any = None

    def open(self, step: int) -> None:
        """Bring the files to ``step``, where the run goes on: lines after it are taken back."""
        if self.world.rank:
            return
        path = self.out / "steps.jsonl"
        kept = []
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(text)["step"] <= step:
                        kept.append(text + "\n")
                except (ValueError, KeyError):
                    break  # a line that a kill or a full disk cut short
        write_text(path, "".join(kept))
        self.write_history()
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.out / "tensorboard", purge_step=step + 1)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the lines to go on."""
        return {
            "history": self.history,
            "window": self.window,
            "epoch": self.epoch,
            "collapsed": self.collapsed,
            "seconds": time.monotonic() - self.epoch_clock,
        }

    def add(self, loss: Tensor, std: Tensor | None) -> None:
        """Note a step's loss and std (scalars on the device) without waiting for them."""
        self.counted += 1
        self.unread.append(
            torch.stack((loss, torch.full_like(loss, math.nan) if std is None else std))
        )

    def read(self, step: int) -> None:
        """Fetch what was noted up to ``step`` (the number of steps done).

        Raises:
            UserError: a loss among it is not finite.
        """
        if not self.unread:
            return
        fetched = self.world.mean(torch.stack(self.unread).double()).tolist()
        first, self.unread = step - len(self.unread) + 1, []
        limit = 0.1 * self.config.dim**-0.5
        for number, (loss, std) in enumerate(fetched, first):
            if not math.isfinite(loss):
                raise self.world.problem(self.not_finite(f"the loss is {loss}", number))
            self.window.append([loss, std])
            self.epoch = [self.epoch[0] + 1, self.epoch[1] + loss, self.epoch[2] + std]
            self.collapsed = self.collapsed + 1 if std < limit else 0

    def not_finite(self, what: str, step: int) -> str:
        """The message for ``what`` is not finite at ``step``: the last checkpoint, and what to try."""
        kept = checkpoints(self.out)
        last = f"{kept[0]} is the last finite checkpoint" if kept else "there is no checkpoint yet"
        return (
            f"{what} at step {step} (epoch {(step - 1) // self.steps + 1}); {last}; try a lower "
            "--base_lr, some --warmup_epochs or --bf16 false, with another --out"
        )

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """``batches``, the time that each takes counted as waiting for data."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the body's time as training."""
        start = time.monotonic()
        yield
        spent = time.monotonic() - start
        self.clock, self.epoch_clock = self.clock + spent, self.epoch_clock + spent

    @property
    def has_collapsed(self) -> bool:
        """Whether the output's std has been under a tenth of 1/sqrt(d) for ``collapse_steps``."""
        return self.collapsed >= self.config.collapse_steps

    def step_line(self, step: int, rates: list[float], progress: Bar) -> None:
        """Write the line of the steps since the last one."""
        self.read(step)
        now = time.monotonic()
        count, seconds = len(self.window), max(now - self.clock, 1e-9)
        loss, std = (sum(column) / count for column in zip(*self.window, strict=True))
        line = {
            "epoch": (step - 1) // self.steps + 1,
            "step": step,
            "loss": loss,
            "std": _or_none(std),
            "lr": rates[0],
            "predictor_lr": rates[1] if len(rates) > 1 else None,
            "images_per_second": round(self.counted * self.config.batch_size / seconds, 2),
            "data_wait": round(min(1.0, self.waited / seconds), 4),
        }
        done, self.clock, self.waited, self.counted, self.window = self.counted, now, 0.0, 0, []
        shown = {"loss": loss, "std": std * self.config.dim**0.5, "lr": rates[0]}
        if len(rates) > 1 and rates[1] != rates[0]:
            shown["pred lr"] = rates[1]
        shown = {k: v for k, v in shown.items() if math.isfinite(v)}
        speed = f"{line['images_per_second']:.0f}"
        progress.advance(
            done,
            epoch=str(line["epoch"]),
            **{"std·√d" if k == "std" else k: v for k, v in shown.items()},
            **{"images/s": speed, "data wait": f"{100 * float(line['data_wait']):.0f} %"},
        )
        if self.world.rank == 0:
            _append(self.out / "steps.jsonl", line)
            self._to_board(line, step, ("loss", "std", "lr", "predictor_lr", "images_per_second"))
        if self.has_collapsed and self.collapsed - count < self.config.collapse_steps:
            say(
                f"the output has collapsed: its std has been under a tenth of 1/√{self.config.dim} "
                f"for {self.collapsed} steps (now step {step})"
            )

    def epoch_line(self, epoch: int, rate: float) -> None:
        """Begin the line of the epoch that is done; the kNN accuracy may come later."""
        now = time.monotonic()
        count, loss, std = self.epoch
        self.history.append(
            {
                "epoch": epoch,
                "step": epoch * self.steps,
                "loss": loss / count,
                "std": _or_none(std / count),
                "std_target": self.config.dim**-0.5,
                "lr": rate,
                "knn_top1": None,
                "seconds": round(now - self.epoch_clock, 3),
            }
        )
        self.epoch, self.epoch_clock = [0, 0.0, 0.0], now

    def knn(self, found: Mapping[int, float]) -> None:
        """Put kNN accuracies (epoch to percent) into their lines."""
        for epoch, accuracy in found.items():
            self.history[epoch - 1]["knn_top1"] = accuracy
            self._to_board({"knn_top1": accuracy}, epoch * self.steps, ("knn_top1",))

    def write_steps(self) -> None:
        """Make the step lines so far outlive a power cut, as the checkpoint that follows does."""
        path = self.out / "steps.jsonl"
        if path.exists():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())

    def write_history(self) -> None:
        """Write monitor.jsonl whole."""
        if self.world.rank == 0:
            text = "".join(json.dumps(line) + "\n" for line in self.history)
            write_text(self.out / "monitor.jsonl", text)

    def _to_board(self, line: Mapping[str, Any], step: int, names: tuple[str, ...]) -> None:
        for name in names if self.board is not None else ():
            if line[name] is not None:
                self.board.add_scalar(name, line[name], step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()


def check_tensorboard(config: PretrainConfig) -> None:
    """Refuse --tensorboard where the package is missing.

    Raises:
        UserError: it is.
    """
    from importlib.util import find_spec

    if config.tensorboard and find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the tensorboard package: pip install tensorboard")


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _append(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
