"""Checkpoints of a pre-training run: sealed, the last two kept, resumed only by their own run."""

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pretrain.config import RUNTIME_FIELDS, PretrainConfig
from siambench.errors import UserError, first_line
from siambench.files import atomic_path
from siambench.progress import say

FORMAT = "siambench-pretrain"
KEEP = 2
_NAME = re.compile(r"checkpoint_(\d{4,})(?:_(\d{6,}))?\.pth")
_WRITING = re.compile("PytorchStreamWriter|inline_container|iostream")  # of torch's zip writer
_SEAL = b"siambench sha256 "  # and 64 hex digits: the comment at the end of the zip archive


def checkpoint_path(out: Path, epoch: int, step: int = 0) -> Path:
    """Where the state after ``epoch`` epochs (and ``step`` steps of the next) is kept."""
    return out / f"checkpoint_{epoch:04d}{f'_{step:06d}' if step else ''}.pth"


def recipe(config: PretrainConfig, fingerprint: str) -> dict[str, Any]:
    """What must be equal for a run to be resumed: every setting that moves the weights, and the data."""
    plain = {k: v for k, v in asdict(config).items() if k not in RUNTIME_FIELDS}
    return {**plain, "augment": _plain(plain["augment"]), "data_fingerprint": fingerprint}


def _plain(augment: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in augment.items()}


def save_checkpoint(out: Path, epoch: int, step: int, state: dict[str, Any]) -> Path:
    """Write the state after ``epoch`` epochs and ``step`` steps; drop all but the last ``KEEP``.

    Raises:
        UserError: it cannot be written (disk full); those before are still there.
    """
    path = checkpoint_path(out, epoch, step)
    with atomic_path(path) as temporary:
        try:
            torch.save({"format": FORMAT, "epoch": epoch, "step": step, **state}, temporary)
        except RuntimeError as error:
            if not _WRITING.search(str(error)):
                raise
            raise OSError(f"{first_line(error)}; is the disk full?") from error
        seal(temporary)
    for old in checkpoints(out)[KEEP:]:
        old.unlink()
    return path


def load_latest(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The newest whole checkpoint of this run, or None when there is none.

    A damaged one is passed over for the one before, and a line says so.

    Raises:
        UserError: the checkpoints were made with other settings or data; or all are damaged.
    """
    found = checkpoints(out)
    for path in found:
        try:
            check_seal(path)
        except ValueError as error:
            say(f"{path} is damaged ({error}); trying the one before")
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        state = torch.load(path, map_location="cpu", weights_only=True)
        _same_run(path, _flat(state["recipe"]), _flat(wanted))
        return dict(state)
    if found:
        raise UserError(f"{out}: every checkpoint is damaged; remove them to start over")
    return None


def _same_run(path: Path, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    """A setting that ``path`` does not know, being older, had what is now its default.

    Raises:
        UserError: names the first setting that differs.
    """
    default = _flat(recipe(PretrainConfig(data=""), ""))
    for name, now in wanted.items():
        was = made.get(name, default.get(name))
        if was != now:
            raise UserError(
                f"{path} was made with {name} = {was}, not {now}; give another --out, or remove "
                f"{path.parent} to start over"
            )


def _flat(made: dict[str, Any]) -> dict[str, Any]:
    """``augment`` by its fields."""
    nested = {f"augment.{k}": v for k, v in made["augment"].items()}
    return {**{k: v for k, v in made.items() if k != "augment"}, **nested}


def checkpoints(out: Path) -> list[Path]:
    """All checkpoints in ``out``, the newest first."""
    found = {path: _NAME.fullmatch(path.name) for path in out.glob("checkpoint_*.pth")}
    place = {path: (int(m[1]), int(m[2] or 0)) for path, m in found.items() if m}
    return sorted(place, key=place.__getitem__, reverse=True)


def seal(path: Path) -> None:
    """Put the SHA-256 of a zip archive, as torch.save writes, into the comment at its end.

    The archive's own checksums are not looked at by torch.load, and cover the tensors only.
    """
    with open(path, "rb+") as handle:
        comment = _SEAL + hashlib.file_digest(handle, "sha256").hexdigest().encode()
        handle.seek(-2, 2)
        if handle.read() != b"\0\0":
            raise OSError(f"{path} does not end as a zip archive without a comment")
        handle.seek(-2, 2)
        handle.write(len(comment).to_bytes(2, "little") + comment)


def check_seal(path: Path) -> None:
    """Recognise any change since :func:`seal`, of one bit too.

    Raises:
        ValueError: there is no seal, or the content does not match it.
    """
    size = len(_SEAL) + 64
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        left = handle.seek(0, 2) - size - 2
        if left < 0:
            raise ValueError("it is too short")
        handle.seek(0)
        while left:
            block = handle.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
        end = handle.read()
    digest.update(b"\0\0")  # the length of the comment when there was none
    if end != size.to_bytes(2, "little") + _SEAL + digest.hexdigest().encode():
        raise ValueError("its content does not match its checksum")
