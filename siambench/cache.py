"""The feature cache: what a frozen backbone says of every image, computed once and kept on disk.

A table is a folder ``CACHE/SPLIT-LAYER-KEY`` with the array ``features.npy``, which anyone may
memory-map, and ``table.json``, which says what it holds and whose presence says that it is whole.
The key is a digest of weights, mean and std, images (paths, sizes, last bytes and times of modification),
their preparation, layer, precision and type; not of the versions and the machine that move a number's
last bits. While a table is made, shards of 256 images are written in place and, once they are on the
disk, marked as done in ``done/``: a process that is killed loses a shard and two seconds. Any number of
processes, on any number of hosts, may work on one table without a lock: each looks for a shard that is
not done yet (two may be at the same one), all write the same numbers, and shards of 8 columns or a
multiple do not share a page of the file.
"""

import json
import os
import platform
import shutil
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siambench.backbone import weights_digest
from siambench.errors import UserError
from siambench.evaluation import Job
from siambench.features import LayerFeatures, Pictures, normalised_batches
from siambench.files import digest_of, write_text
from siambench.progress import bar

VERSION = 1  # raised when the same key would give other numbers
SHARD = 256  # images
_SYNC_EVERY = 2.0  # seconds: to wait for the disk after each shard takes longer than a GPU does
_HEADER = 4096  # bytes before the first row: one page
_BATCH = {"cpu": 64, "cuda": 256}  # images per forward pass

Tables = dict[tuple[str, str], np.ndarray]  # (split, layer) to the features (images, D)


@dataclass(frozen=True)
class Table:
    """One array of the cache.

    Attributes:
        folder: where it lies.
        about: what the key is made of, and the shape.
        shape: (images, D).
        dtype: float16 or float32.
    """

    folder: Path
    about: dict[str, Any]
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def file(self) -> Path:
        """The array."""
        return self.folder / "features.npy"

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return _HEADER + self.shape[0] * self.shape[1] * self.dtype.itemsize

    def whole(self) -> bool:
        """Whether every row is there."""
        return (self.folder / "table.json").is_file() and self._has_its_size()

    def done(self, shard: int) -> bool:
        """Whether the rows of one shard are there."""
        return (self.folder / "done" / str(shard)).is_file() or self.whole()

    def start(self) -> None:
        """Make the file; where it is there, keep its rows.

        Raises:
            UserError: the folder cannot be written to or there is no room.
        """
        try:
            (self.folder / "done").mkdir(parents=True, exist_ok=True)
            if not self._has_its_size():  # of nobody, or not ours: what is marked is not there
                (self.folder / "table.json").unlink(missing_ok=True)
                for mark in (self.folder / "done").iterdir():
                    mark.unlink(missing_ok=True)
            handle = os.open(self.file, os.O_CREAT | os.O_WRONLY, 0o666)
            try:  # two processes at once write the same header and length
                os.pwrite(handle, _header(self.shape, self.dtype), 0)
                os.ftruncate(handle, self.size)
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"cannot write features to {self.folder}: {error.strerror}") from error

    def write(self, shard: int, rows: np.ndarray) -> None:
        """Write the rows (n, D) of one shard.

        Raises:
            UserError: the disk is full or has failed.
        """
        data = np.ascontiguousarray(rows, self.dtype).data.cast("B")
        at = _HEADER + shard * SHARD * self.shape[1] * self.dtype.itemsize
        try:
            handle = os.open(self.file, os.O_WRONLY)
            try:
                while data:
                    written = os.pwrite(handle, data, at)
                    data, at = data[written:], at + written
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"cannot write features to {self.folder}: {error.strerror}") from error

    def mark(self, shards: Sequence[int]) -> None:
        """Say of shards that were written that they are done, once the disk has them.

        Raises:
            UserError: the disk is full or has failed.
        """
        try:
            handle = os.open(self.file, os.O_WRONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            for shard in shards:
                with suppress(FileNotFoundError):  # another process was sooner: the table is whole
                    (self.folder / "done" / str(shard)).touch()
        except OSError as error:
            raise UserError(f"cannot write features to {self.folder}: {error.strerror}") from error

    def finish(self) -> None:
        """Say that the table is whole: every shard has its mark, or another process has said so."""
        write_text(self.folder / "table.json", json.dumps(self.about, indent=1) + "\n")
        shutil.rmtree(self.folder / "done", ignore_errors=True)

    def open(self) -> np.ndarray:
        """The rows, memory-mapped; what is written to them never reaches the file."""
        return np.load(self.file, mmap_mode="c")  # type: ignore[no-any-return]

    def _has_its_size(self) -> bool:
        with suppress(OSError):
            return self.file.stat().st_size == self.size
        return False


def cached_features(
    encoder: LayerFeatures, pictures: Mapping[str, Pictures], storage: str, job: Job
) -> Tables:
    """Features of pictures under every layer of ``encoder``, from the cache or computed into it.

    Under torchrun the processes share the work and all return when the tables are whole; so do
    processes that know nothing of each other.

    Args:
        encoder: the backbone, its layers and precision.
        pictures: by name (a split, a view); the name is for people, the key does not have it.
        storage: ``"float16"`` or ``"float32"``.
        job: where the cache is, device, loader processes, title.

    Returns:
        ``{(name, layer): memory-mapped array (images, D)}``.

    Raises:
        UserError: a feature is NaN, infinite or too large for float16, or the disk is full.
    """
    weights = weights_digest(encoder.backbone.resnet.state_dict())
    tables = {
        (name, layer): _table(encoder, weights, name, layer, images, storage, job.cache)
        for name, images in pictures.items()
        for layer in encoder.layers
    }
    _check_room([table for table in tables.values() if not table.whole()])
    for name, images in pictures.items():
        of_images = {layer: tables[name, layer] for layer in encoder.layers}
        # More than once only if the folder is emptied while it is being filled.
        while missing := {layer: table for layer, table in of_images.items() if not table.whole()}:
            _fill(encoder, images, missing, f"{job.title}: features of {name}", job)
    return {at: table.open() for at, table in tables.items()}


def _table(
    encoder: LayerFeatures,
    weights: str,
    name: str,
    layer: str,
    images: Pictures,
    storage: str,
    cache: Path,
) -> Table:
    meta = encoder.backbone.meta
    shape = (len(images), encoder.dims[encoder.layers.index(layer)])
    about = {
        "version": VERSION,
        "weights_sha256": weights,
        "arch": meta.arch,
        "mean": meta.mean,
        "std": meta.std,
        "pictures": images.key(),
        "layer": layer,
        "precision": encoder.precision,
        "storage": storage,
        "shape": shape,
    }
    key = digest_of(about)
    folder = cache / f"{name}-{layer}-{key[:16]}"
    return Table(folder, {**about, "backbone": encoder.backbone.name}, shape, np.dtype(storage))


def _check_room(tables: Sequence[Table]) -> None:
    """Refuse to begin what the disk cannot hold."""
    for table in tables:
        table.start()
    used = sum(table.file.stat().st_blocks * 512 for table in tables)
    needed = sum(table.size for table in tables) - used
    if tables and needed > (free := shutil.disk_usage(tables[0].folder).free):
        raise UserError(
            f"the features need {needed / 1e9:.1f} GB in {tables[0].folder.parent}, where "
            f"{free / 1e9:.1f} GB are free; name another folder with --cache, or fewer layers or views"
        )


def _fill(
    encoder: LayerFeatures, images: Pictures, tables: Mapping[str, Table], title: str, job: Job
) -> None:
    """Compute the shards that nobody has computed, and say of every table that has all that it is whole."""
    for table in tables.values():
        table.start()
    count = len(images)
    shards = [range(i, min(i + SHARD, count)) for i in range(0, count, SHARD)]
    begun: deque[int] = deque()  # shards that the loaders have been sent for, in order
    per_pass = _BATCH[job.device.type]

    def missing(shard: int) -> bool:
        return not all(table.done(shard) for table in tables.values())

    def batches() -> Iterator[range]:
        first = _first(len(shards), job)
        for shard in [*range(first, len(shards)), *range(first)]:
            if missing(shard):
                begun.append(shard)
                rows = shards[shard]
                yield from (rows[i : i + per_pass] for i in range(0, len(rows), per_pass))

    behind = sum(len(rows) for shard, rows in enumerate(shards) if not missing(shard))
    meta = encoder.backbone.meta
    inputs = normalised_batches(
        images,  # type: ignore[arg-type]
        batches(),
        mean=meta.mean,
        std=meta.std,
        device=job.device,
        workers=job.workers,
    )
    parts: list[np.ndarray] = []
    with bar(title, count, behind) as progress, torch.no_grad(), _Marks(tables.values()) as marks:
        for pixels in inputs:
            parts.append(encoder(pixels).cpu().numpy())
            progress.advance(len(parts[-1]))
            if sum(map(len, parts)) == len(shards[begun[0]]):
                _write(encoder, np.concatenate(parts), images, tables, begun[0])
                marks.add(begun.popleft())
                parts = []
    for table in tables.values():
        if not table.whole() and all(map(table.done, range(len(shards)))):
            table.finish()


class _Marks:
    """Shards that are written; marked every two seconds and at the end, also of an interrupted run."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables, self.shards, self.last = list(tables), list[int](), time.monotonic()

    def __enter__(self) -> "_Marks":
        return self

    def __exit__(self, *_: object) -> None:
        self._mark()

    def add(self, shard: int) -> None:
        self.shards.append(shard)
        if time.monotonic() - self.last >= _SYNC_EVERY:
            self._mark()

    def _mark(self) -> None:
        for table in self.tables:
            if self.shards:
                table.mark(self.shards)
        self.shards, self.last = [], time.monotonic()


def _first(shards: int, job: Job) -> int:
    """Where this process begins: those of one job at equal distances, other jobs anywhere."""
    several = job.world.size > 1
    who = os.environ.get("MASTER_PORT", "") if several else f"{platform.node()} {os.getpid()}"
    start = zlib.crc32(who.encode()) / 2**32 + job.world.rank / job.world.size
    return int(start % 1 * shards)


def _write(
    encoder: LayerFeatures,
    rows: np.ndarray,
    images: Pictures,
    tables: Mapping[str, Table],
    shard: int,
) -> None:
    """Check the rows of a shard and give each table its columns."""
    ends = np.cumsum(encoder.dims)
    columns = dict(zip(encoder.layers, zip(ends - encoder.dims, ends, strict=True), strict=True))
    for layer, table in tables.items():
        part = rows[:, slice(*columns[layer])]
        most = np.abs(part).max(axis=1)
        bad = np.flatnonzero(~(most <= np.finfo(table.dtype).max))
        if len(bad):
            name, value = images.name(shard * SHARD + int(bad[0])), most[bad[0]]
            raise UserError(
                f"{encoder.backbone.name}: {layer} of {name} is {value:g}"
                + (
                    ", more than float16 holds; use --storage float32"
                    if np.isfinite(value)
                    else ": the backbone is not sound, or its mean and std are wrong"
                )
            )
        table.write(shard, part)


def _header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """The start of a .npy file (format 1.0), padded to a page so that rows are aligned."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    return (
        b"\x93NUMPY\x01\x00"
        + (_HEADER - 10).to_bytes(2, "little")
        + (text.ljust(_HEADER - 11) + "\n").encode("latin1")
    )
