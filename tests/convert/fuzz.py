"""Mutated checkpoints through the whole conversion: a whole backbone file or one clear line.

    python tests/convert/fuzz.py --count 10000 --seed 0

Cases run in a forked worker that is watched: a crash, a hang, a leak of memory or of files, or any
exception but UserError is a finding; its file is kept under --keep, named by its seed and number.
"""

import argparse
import contextlib
import io
import multiprocessing
import pickle
import random
import resource
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import checkpoints
import numpy as np
import torch
from safetensors.torch import save_file

from convert.config import ConvertConfig
from convert.run import run
from siambench.backbone import read_backbone, weights_digest
from siambench.checkpoints.names import to_detectron2
from siambench.errors import UserError

SECONDS = 20
MEGABYTES = 200  # that a case of a third of a megabyte may add to the memory in use
_ADDRESSES = 2 << 30
_NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**64 - 1)
_CODE = (
    b".",
    b"R",
    b"b",
    b"s",
    b"u",
    b"t",
    b"\x85",
    b"\x86",
    b"\x81",
    b"0",
    b"2",
    b"(",
    b"}",
    b"]",
)
_CODE += (b"q\x01", b"h\x01", b"r\xff\xff\xff\x7f", b"K\x07", b"N", b"Q", b"cnumpy\ndtype\n")
_CODE += (b"cposix\nsystem\n", b"cbuiltins\ngetattr\n", b"\x8e" + b"\xff" * 7 + b"\x0f")

# What stands in for a library while its pickles are made.
_LIBRARIES = {
    "mmengine.logging.history_buffer": "class HistoryBuffer:\n def min(self): 0\n def mean(self): 0"
}


@contextlib.contextmanager
def libraries(sources: dict[str, str]) -> Iterator[dict[str, ModuleType]]:
    """Modules that are not installed, made from ``sources`` and importable meanwhile."""
    made: dict[str, ModuleType] = {}
    for name, source in sources.items():
        for end in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:end])
            made.setdefault(part, ModuleType(part))
        exec(source, made[name].__dict__)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield made
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def mmengine_checkpoint(state: dict[str, Any]) -> bytes:
    """What mmengine's runner saves, its message hub with it."""
    with libraries(_LIBRARIES) as made:
        kind = made["mmengine.logging.history_buffer"].HistoryBuffer
        buffer = kind()
        history, counts = np.linspace(0, 1, 5), np.ones(5, np.int64)
        buffer.__dict__ = {"max_length": 1000, "_log_history": history, "_count_history": counts}
        buffer._statistics_methods = {"min": kind.min, "mean": kind.mean}
        hub = {"log_scalars": {"train/loss": buffer}, "runtime_info": {"epoch": np.int64(3)}}
        return _saved(
            {"meta": {"epoch": 3}, "state_dict": checkpoints.put("backbone.", state, neck__fc=(3,)),
             "message_hub": hub, "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]}}
        )  # fmt: skip


def _saved(payload: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer, **options)
    return buffer.getvalue()


def zipped(entries: Mapping[str, bytes | bytearray]) -> bytes:
    """A zip whose entries are stored as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, bytes(entry))
    return buffer.getvalue()


def originals(folder: Path) -> dict[str, bytes]:
    """A small whole file of every format."""
    state = dict(checkpoints.make_resnet().state_dict())
    foreign, own = folder / "foreign", folder / "own.safetensors"
    save_file(state, foreign)
    arrays = {"model": to_detectron2(state), "__author__": "MSRA"}
    torch.save(state, folder / "a.pth")
    with contextlib.redirect_stdout(io.StringIO()):
        run(ConvertConfig(source=str(folder / "a.pth"), out=str(own)))
    files = {
        "zip": _saved(checkpoints.training(checkpoints.put("module.encoder_q.", state))),
        "legacy": _saved({"state_dict": state}, _use_new_zipfile_serialization=False),
        "mmengine": mmengine_checkpoint(state),
        "safetensors": foreign.read_bytes(),
        "backbone": own.read_bytes(),
        **{f"pkl{protocol}": pickle.dumps(arrays, protocol) for protocol in (2, 3, 4, 5)},
    }
    for path in folder.iterdir():
        path.unlink()
    return files


@dataclass(frozen=True)
class Case:
    """A mutated file.

    Attributes:
        kind: the format it was.
        steps: what was done to it.
        content: the file.
        sealed: whether a checksum of the format must notice any other weights.
    """

    kind: str
    steps: list[str]
    content: bytes
    sealed: bool


def make_case(seed: int, index: int, files: dict[str, bytes]) -> Case:
    """Case ``index`` of ``seed``: the same each time, but for torch's legacy files, whose storages are
    named and sorted by where in memory they were."""
    chance = random.Random(f"{seed} {index}")
    kind = chance.choice(sorted(files))
    sealed, content, steps = kind in ("zip", "mmengine", "backbone"), bytearray(files[kind]), []
    if kind in ("zip", "mmengine") and chance.random() < 0.5:
        content, step = _inside(content, chance, files)
        return Case(kind, [step], bytes(content), sealed=False)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        steps.append(_mutate(content, chance, files))
    return Case(kind, steps, bytes(content), sealed)


def _inside(
    content: bytearray, chance: random.Random, files: dict[str, bytes]
) -> tuple[bytearray, str]:
    """Entries of a zip changed or swapped, and the checksums made right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    if chance.random() < 0.3:
        a, b = chance.sample(sorted(entries), 2)
        entries[a], entries[b], step = entries[b], entries[a], f"{a} for {b}"
    else:
        name = pickled if chance.random() < 0.8 else chance.choice(sorted(entries))
        step = f"{name}: {_mutate(entries[name], chance, files)}"
    return bytearray(zipped(entries)), step


def _mutate(content: bytearray, chance: random.Random, files: dict[str, bytes]) -> str:
    """Change ``content`` in one of many ways; in words, which."""
    size = len(content)
    near = chance.choice([size, min(size, 64), min(size, 4000)])  # headers are where it hurts
    place = chance.randrange(near) if near else 0
    place = max(size - 1 - place, 0) if chance.random() < 0.3 else place
    length = chance.choice([1, 2, 8, 64, 1000, size // 4])
    way = chance.choice(
        ["flip", "flip", "run", "cut", "insert", "delete", "repeat", "splice", "number", "code"]
    )
    if way == "flip":
        for _ in range(chance.choice([1, 4, 40])):
            if content:
                content[min(place, len(content) - 1)] ^= 1 << chance.randrange(8)
                place = chance.randrange(near)
    elif way == "run":
        content[place : place + length] = chance.choice([b"\0", b"\xff"]) * length
    elif way == "cut":
        del content[place:]
    elif way == "insert":
        content[place:place] = chance.randbytes(length)
    elif way == "delete":
        del content[place : place + length]
    elif way == "repeat":
        content[place:place] = content[place : place + length]
    elif way == "splice":
        other = files[chance.choice(sorted(files))]
        begin = chance.randrange(len(other))
        content[place : place + chance.choice([0, length])] = other[begin : begin + length]
    elif way == "number":
        packed = struct.pack("<Q", chance.choice(_NUMBERS))[: chance.choice([1, 2, 4, 8])]
        content[place : place + len(packed)] = packed
    else:
        code = chance.choice(_CODE)
        content[place : place + chance.choice([0, len(code)])] = code * chance.choice([1, 1, 1000])
    return f"{way} at {place} of {size}"


def attempt(case: Case, digests: dict[str, str], folder: Path) -> tuple[str, str]:
    """Convert one case in ``folder``; ``("written" or "refused", "")``, or what is wrong."""
    source, out = folder / "source.pth", folder / "out.safetensors"
    source.write_bytes(case.content)
    out.unlink(missing_ok=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            done = run(ConvertConfig(source=str(source), out=str(out)))
    except UserError as error:
        left = sorted(path.name for path in folder.iterdir())
        if left != ["source.pth"]:
            return "finding", f"left {left} behind"
        said = str(error)
        if not said.isprintable() or len(said) > 1000 or str(source) not in said:
            return "finding", f"no clear line: {said[:2000]!r}"
        return "refused", ""
    except BaseException as error:
        return "finding", f"{type(error).__name__}: {error}"
    state, _ = read_backbone(out)
    if weights_digest(state) != done.report.digest:
        return "finding", "other weights were written than were reported"
    if case.sealed and done.report.digest != digests[case.kind]:
        return "finding", "a checksum of the format was not heeded"
    return "written", ""


def _serve(pipe: Connection, seed: int, files: dict[str, bytes], folder: Path) -> None:
    """The worker: a number comes in, what became of that case goes out."""
    torch.set_num_threads(1)
    digests = {}
    for kind, content in files.items():  # and all that is loaded late is loaded
        (folder / "source.pth").write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()):
            source, out = str(folder / "source.pth"), str(folder / "out.safetensors")
            digests[kind] = run(ConvertConfig(source=source, out=out)).report.digest
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESSES, mapped + _ADDRESSES))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while True:
        pipe.send(None)
        index = pipe.recv()
        if index is None:
            return
        result = attempt(make_case(seed, index, files), digests, folder)
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10
        if used > MEGABYTES and result[0] != "finding":
            result = "finding", f"took {used} MB"
        pipe.send(result)


@dataclass
class Summary:
    """What became of the cases: counts by format and end, and the findings in words."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def fuzz(count: int, seed: int, keep: Path | None = None) -> Summary:
    """Convert ``count`` mutated files; a worker that dies or hangs is replaced."""
    context, summary = multiprocessing.get_context("fork"), Summary()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = originals(folder)
        worker = None
        for index in range(count):
            if worker is None:
                pipe, end = context.Pipe()
                worker = context.Process(target=_serve, args=(end, seed, files, folder))
                worker.start()
                end.close()
                pipe.recv()
            pipe.send(index)
            try:
                end_of_case, said = pipe.recv() if pipe.poll(SECONDS) else ("finding", "hangs")
            except EOFError:
                worker.join()
                end_of_case, said = "finding", f"ends the process ({worker.exitcode})"
            case = make_case(seed, index, files)
            summary.counts[case.kind, end_of_case] += 1
            if end_of_case == "finding":
                summary.findings.append(
                    f"seed {seed} case {index}, {case.kind}: {case.steps}: {said}"
                )
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{index}.{case.kind}").write_bytes(case.content)
                worker.kill()
                worker.join()
                worker = None
                for path in folder.iterdir():
                    path.unlink()
            else:
                pipe.recv()
        if worker:
            pipe.send(None)
            worker.join()
    return summary


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    given = parser.parse_args()
    summary = fuzz(given.count, given.seed, given.keep)
    for kind in sorted({kind for kind, _ in summary.counts}):
        ends = {end: n for (k, end), n in sorted(summary.counts.items()) if k == kind}
        print(f"{kind:<12} {ends}")
    print("\n".join(summary.findings) or f"{given.count} cases, no finding")
    return 1 if summary.findings else 0


if __name__ == "__main__":
    sys.exit(main())
