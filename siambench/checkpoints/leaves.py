"""Other people's files, read without running anything in them.

What a file is shows in its first bytes, not in its name.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from siambench.checkpoints.pickles import Array, read_pickle
from siambench.errors import UserError, first_line

_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # torch.save before 1.6
_MOST_VALUES = 200_000
_DEEPEST = 12


@dataclass(frozen=True)
class Leaf:
    """One value of a checkpoint, wherever it was nested.

    Attributes:
        key: its dotted place in the file, e.g. ``"state_dict.module.encoder.conv1.weight"``.
        value: a tensor, or whatever else the file holds there.
    """

    key: str
    value: Any


def read_leaves(path: Path) -> dict[str, Leaf]:
    """Every value of a checkpoint by its dotted key, ``module`` and ``_orig_mod`` left out.

    Those two are what DistributedDataParallel and torch.compile put into names, in any order and
    number.

    Raises:
        UserError: the file is empty, damaged, no checkpoint, or would have to run code to load.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(512)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not head:
        raise UserError(f"{path} is empty; the download or the copy failed: get it again")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return flatten(path, _torch_load(path, mmap=True))
    if head.startswith(_LEGACY):
        return flatten(path, _torch_load(path, mmap=False))
    if head[8:9] == b"{":
        return flatten(path, _safetensors(path))
    if head[:1] == b"\x80" or re.match(rb"[(\]}]*c[\w.]+\n[\w.]+\n", head):
        return flatten(path, read_pickle(path))
    raise UserError(f"{path} is not a checkpoint: {_what(head)}")


def _what(head: bytes) -> str:
    """A file that is no checkpoint, in words."""
    if head.lstrip().startswith(b"<"):
        return "it is a web page, as a failed download leaves; get the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file it points to with `git lfs pull`"
    return f"it begins with {head[:12]!r}; a torch, safetensors or detectron2 .pkl file is needed"


def _check_zip(path: Path) -> None:
    """torch.save stores its entries as they are: one that is packed would unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path} is cut short or damaged ({error}); copy or download it again"
        ) from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise UserError(
            f"{path} is a compressed archive, not a file of torch.save; unpack it first"
        )


def _torch_load(path: Path, *, mmap: bool) -> Any:
    """Weights-only loading; ``argparse.Namespace``, which DINO keeps, passes as inert data."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{path} is refused: its pickle wants {wanted[1]}, and only tensors and plain data "
                "are let through; nothing of it was run; save the model's state_dict() alone"
            ) from None
        said = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the doc")[0]
        raise UserError(
            f"{path} is not a whole checkpoint ({' '.join(said.split())[:200]}); copy or download "
            "it again"
        ) from None
    except Exception as error:  # a hostile or damaged file can raise anything
        reason = first_line(error)[:200]
        raise UserError(
            f"{path} is not a whole checkpoint ({reason}); copy or download it again"
        ) from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from None


def flatten(path: Path | str, payload: Any) -> dict[str, Leaf]:
    """Every value of a loaded checkpoint by its dotted key, as :func:`read_leaves` returns them.

    Args:
        path: where it came from, for messages.
        payload: dicts in dicts, down to tensors and other values.

    Raises:
        UserError: it is not a dict, is nested beyond reason, or holds one weight under two names.
    """
    if not isinstance(payload, Mapping):
        raise UserError(
            f"{path} holds one {type(payload).__name__}, not a dict of tensors; save the model's "
            "state_dict()"
        )
    leaves: dict[str, Leaf] = {}
    rest: list[tuple[str, str, Any, int]] = [("", "", payload, 0)]
    values = 0  # not only leaves: empty dicts can be nested in numbers beyond counting
    while rest:
        short, full, value, depth = rest.pop()
        if isinstance(value, Mapping):
            values += len(value)
            if depth == _DEEPEST or values > _MOST_VALUES:
                raise UserError(f"{path} nests deeper or holds more than any checkpoint does")
            for key, child in reversed(list(value.items())):
                key = str(key)
                kept = ".".join(p for p in key.split(".") if p not in ("module", "_orig_mod"))
                parts = [part for part in (short, kept) if part]
                rest.append((".".join(parts), f"{full}.{key}" if full else key, child, depth + 1))
        else:
            if isinstance(value, Array):
                value = None if value.array is None else torch.from_numpy(value.array)
            before = leaves.get(short)
            if before is None or not isinstance(before.value, Tensor):
                leaves[short] = Leaf(full, value)
            elif isinstance(value, Tensor):
                raise UserError(
                    f"{path}: {before.key} and {full} are the same weight under two names"
                )
    return leaves
