"""Checkpoints of a pre-training run: whole or absent, the last two kept, resumed only by their own run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pretrain.config import RUNTIME_FIELDS, PretrainConfig
from siambench.errors import UserError
from siambench.files import atomic_path
from siambench.progress import say

FORMAT = "siambench-pretrain"
KEEP = 2


def checkpoint_path(out: Path, epoch: int) -> Path:
    """Where the state after ``epoch`` epochs is kept."""
    return out / f"checkpoint_{epoch:04d}.pth"


def recipe(config: PretrainConfig, fingerprint: str) -> dict[str, Any]:
    """What must be equal for a run to be resumed: every setting that moves the weights, and the data."""
    plain = {k: v for k, v in asdict(config).items() if k not in RUNTIME_FIELDS}
    return {**plain, "augment": _plain(plain["augment"]), "data_fingerprint": fingerprint}


def _plain(augment: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in augment.items()}


def save_checkpoint(out: Path, epoch: int, state: dict[str, Any]) -> Path:
    """Write the state after ``epoch`` epochs and drop all but the last ``KEEP`` checkpoints."""
    path = checkpoint_path(out, epoch)
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "epoch": epoch, **state}, temporary)
    for old in _found(out)[KEEP:]:
        old.unlink()
    return path


def load_latest(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The newest whole checkpoint of this run, or None when there is none.

    A damaged one is passed over for the one before, and a line says so.

    Raises:
        UserError: the checkpoints were made with other settings or data; or all are damaged.
    """
    found = _found(out)
    for path in found:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise ValueError(f"format is {state['format']!r}")
        except Exception as error:
            say(f"{path} is damaged ({_first_line(error)}); trying the one before")
            continue
        made = state["recipe"]
        changed = [k for k in wanted if made.get(k) != wanted[k]]
        if changed:
            was, now = made.get(changed[0]), wanted[changed[0]]
            raise UserError(
                f"{path} was made with {changed[0]} = {was}, not {now}; give another --out, or "
                f"remove {out} to start over"
            )
        return state
    if found:
        raise UserError(f"{out}: every checkpoint is damaged; remove them to start over")
    return None


def _found(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint_*.pth"), reverse=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
