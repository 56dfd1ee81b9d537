"""Other people's files, read without running anything in them.

What a file is shows in its first bytes, not in its name.
"""

import io
import mmap
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from siambench.checkpoints.inert import TORCH, Array, Inert, Refused
from siambench.checkpoints.pickles import PlainUnpickler, read_pickle, refusal
from siambench.checkpoints.walk import walk
from siambench.errors import UserError, first_line, printable

_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # torch.save before 1.6
_MOST_VALUES = 200_000
_DEEPEST = 12
_LONGEST_TEXT = 1 << 20  # a trainer's whole configuration is some 10,000 characters
_LONGEST_KEY = 1000

# What is offered in place of a checkpoint, by its first bytes.
_UNPACK = "unpack it and name the checkpoint that is in it"
_FOREIGN = {
    rb"version https://git-lfs": "a Git LFS pointer; fetch the file it points to with `git lfs pull`",
    rb"\s*(<\?xml|<Error)": "an XML page, as a storage server answers an error; get the file itself",
    rb"\s*<": "a web page, as a failed download leaves; get the file itself",
    rb'\s*[{\[]\s*["{\[\]}]': "JSON text, as a server answers an error; get the file itself",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|PK\x05\x06": f"a packed archive; {_UNPACK}",
    rb".{257}ustar": f"a tar archive; {_UNPACK}, or save what torch before 0.1.10 wrote again",
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*": "a picture; name a file of weights",
    rb"\x89HDF": "an HDF5 file, as Keras writes; convert it to PyTorch names first",
    rb"\x93NUMPY": "one numpy array; a dict of tensors is needed",
    rb"\0{16}": "zeros, as a download that broke off leaves; get the file again",
}


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
    if head.startswith((b"PK\x03\x04", _LEGACY)):
        return flatten(path, _torch_load(path))
    if head[8:9] == b"{" and b"\0" in head[:8]:  # the length of a safetensors header
        return flatten(path, _safetensors(path))
    if head[:1] == b"\x80" or re.match(rb"[(\]}]*c[\w.]+\n[\w.]+\n", head):
        return flatten(path, read_pickle(path))
    named = (what for start, what in _FOREIGN.items() if re.match(start, head, re.DOTALL))
    what = f"what begins with {head[:12]!r}; a torch, safetensors or detectron2 .pkl file is needed"
    raise UserError(f"{path} is not a checkpoint: it is {next(named, what)}")


def _torch_load(path: Path) -> Any:
    """Weights-only loading of what has been checked; known classes pass as inert data."""
    known: list[Any] = [(stand_in, name) for name, stand_in in TORCH.items()]
    try:
        with open(path, "rb") as handle:
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
                zipped = content[:4] == b"PK\x03\x04"
                _check_zip(path, content) if zipped else _check_legacy(content)
            # torch.load would read a path of this ending with safetensors, whatever it holds
            mapped = zipped and path.suffix != ".safetensors"
            with torch.serialization.safe_globals(known), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(
                    path if mapped else handle, map_location="cpu", weights_only=True, mmap=mapped
                )
    except UserError:
        raise
    except Refused as refused:
        raise refusal(path, refused) from None
    except Exception as error:  # a hostile or damaged file can raise anything
        said = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the doc")[0]
        wanted = re.search(r"GLOBAL ([\w.]+)", said)
        if wanted:
            raise refusal(path, Refused(f"wants {wanted[1]}")) from None
        reason = said or first_line(error)
        raise UserError(
            f"{path} is not a whole checkpoint ({printable(reason)}); copy or download it again"
        ) from None


def _check_zip(path: Path, content: mmap.mmap) -> None:
    """A zip of torch.save: its entries stored as they are, whole by their checksums, one pickle.

    ``torch.serialization.set_crc32_options(False)`` leaves every checksum 0; then none is checked.

    Raises:
        UserError: it is another archive, damaged, or would unpack to more than it is.
        Refused: its pickle does more than hold data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise UserError(
            f"{path} is cut short or damaged ({printable(first_line(error))}); copy or download it again"
        ) from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") for name in names):
        raise UserError(
            f"{path} is a TorchScript program, not weights: torch.jit.load(path).state_dict() where "
            "you trust it, saved with torch.save, can be read"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > len(content)
    ):
        raise UserError(
            f"{path} is a compressed archive, not a file of torch.save; {_UNPACK}: {_few(names)}"
        )
    folder = next((name[:-8] for name in names if name.endswith("data.pkl")), None)
    if folder is None:
        raise UserError(f"{path} is an archive, not a file of torch.save; {_UNPACK}: {_few(names)}")
    reader: Any = torch._C.PyTorchFileReader(str(path))  # torch.load's own view of the file
    places = {name: reader.get_record_offset(name) for name in reader.get_all_records()}
    if sorted(folder + name for name in places) != sorted(names):
        raise UserError(
            f"{path} is damaged: two readers of its table of contents see different entries; download it again"
        )
    checked = any(entry.CRC for entry in entries)
    with memoryview(content) as view:
        for entry in entries:
            start = places[entry.filename.removeprefix(folder)]
            if checked and zlib.crc32(view[start : start + entry.file_size]) != entry.CRC:
                raise UserError(
                    f"{path} is damaged: the checksum of its entry {printable(entry.filename)} is wrong; copy or "
                    "download it again"
                )
            if entry.filename == f"{folder}data.pkl":
                walk(io.BytesIO(view[start : start + entry.file_size]), entry.file_size)


def _few(names: list[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return printable(", ".join(names[:3])) + more or "it is empty"


def _check_legacy(content: mmap.mmap) -> None:
    """torch.save before 1.6: five pickles, then the storages that the last one lists.

    Raises:
        Refused: a pickle does more than hold data.
        Exception: damaged; in particular not every storage is listed, whose memory would stay unset.
    """
    stored: list[tuple[Any, ...]] = []
    for _ in range(5):
        start = content.tell()
        stored += walk(content, len(content))
    claimed = {pid[2]: pid[4] for pid in stored}
    listed = PlainUnpickler(io.BytesIO(content[start : content.tell()])).load()
    if type(listed) is not list or sorted(listed) != sorted(claimed):
        raise ValueError("the list of its storages does not match their use")
    if min(claimed.values(), default=0) < 0 or sum(claimed.values()) > len(content):
        raise ValueError("its tensors claim more numbers than the file holds")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({printable(first_line(error))}); get it again"
        ) from None


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
            if depth == _DEEPEST or values > _MOST_VALUES or len(full) > _LONGEST_KEY:
                raise UserError(f"{path} nests deeper or holds more than any checkpoint does")
            for key, child in reversed(list(value.items())):
                key = _text(key)
                kept = ".".join(p for p in key.split(".") if p not in ("module", "_orig_mod"))
                parts = [part for part in (short, kept) if part]
                rest.append((".".join(parts), f"{full}.{key}" if full else key, child, depth + 1))
        else:
            if isinstance(value, Array):
                value = value.array
            if isinstance(value, np.ndarray):
                value = _tensor(value)
            elif callable(value) or isinstance(value, Inert):
                value = None
            elif isinstance(value, str):
                value = printable(value, _LONGEST_TEXT)
            before = leaves.get(short)
            if before is None or not isinstance(before.value, Tensor):
                leaves[short] = Leaf(full, value)
            elif isinstance(value, Tensor):
                raise UserError(
                    f"{path}: {before.key} and {full} are the same weight under two names"
                )
    return leaves


def _tensor(array: np.ndarray) -> Tensor | None:
    """An array of plain numbers as a tensor; in memory it may be read-only or of another byte order."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return None
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _text(key: Any) -> str:
    """A dict's key as part of a name; what is neither text nor a small number goes by its type."""
    if isinstance(key, str):
        return printable(key, _LONGEST_KEY)
    if isinstance(key, int) and abs(key) < 1 << 64:
        return str(key)
    return key.__name__ if isinstance(key, type) else type(key).__name__
