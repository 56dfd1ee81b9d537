"""The state of a fine-tuning on disk: weights, optimizer and iterations done, killed at any moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from siambench.distributed import World
from siambench.errors import first_line
from siambench.files import atomic_path
from siambench.progress import say

M = TypeVar("M", bound=nn.Module)
O = TypeVar("O", bound=Optimizer)  # noqa: E741


def resume(path: Path, world: World, fresh: Callable[[], tuple[M, O]]) -> tuple[M, O, int]:
    """Network, optimizer and the iterations done: as in the file, else as ``fresh`` makes them, and 0.

    A damaged file is said and passed over. Only the first process reads it.
    """
    model, optimizer = fresh()
    state = world.from_first(lambda: _read(path))
    if state is None:
        return model, optimizer, 0
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return model, optimizer, int(state["iteration"])
    except Exception as error:  # whatever a damaged file raises
        _damaged(path, error)
        return *fresh(), 0  # a part of the others may be filled


def save(path: Path, model: nn.Module, optimizer: Optimizer, done: int) -> None:
    """Write what :func:`resume` reads, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": done}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _read(path: Path) -> Any:
    """The file's content; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file raises
        _damaged(path, error)
        return None


def _damaged(path: Path, error: Exception) -> None:
    say(f"{path} is damaged ({first_line(error)}); training starts anew")
