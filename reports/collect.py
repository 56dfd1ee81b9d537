"""Reading run folders: every valid record once, every training curve, and what was left out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.reading import read_records
from siambench.errors import UserError
from siambench.files import existing
from siambench.jobs import JobState, read_states
from siambench.record import Record


@dataclass(frozen=True)
class Entry:
    """A record and the file it came from."""

    path: Path
    record: Record


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the report, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Collected:
    """All that a report is made of.

    Attributes:
        entries: valid records, each evaluation once.
        left_out: damaged or edited records, and second records of an evaluation.
        monitors: pre-training run to its curve, one dict per epoch.
        jobs: of all run folders, how they stand.
    """

    entries: list[Entry]
    left_out: list[LeftOut]
    monitors: dict[str, list[dict[str, Any]]]
    jobs: list[JobState]


def collect(dirs: list[Path]) -> Collected:
    """Read ``DIR/records/*.json`` and ``DIR/pretrain/NAME/monitor.jsonl`` of every folder.

    Two records of one evaluation (benchmark, protocol, data, backbone and seed all equal) are one
    result, not two trials: the first is kept, in the order of ``dirs``, then by file name.
    """
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    seen: dict[tuple[Any, ...], Path] = {}
    dirs = list({folder.resolve(): folder for folder in dirs}.values())
    paths = [file for folder in dirs for file in _record_files(folder)]
    for path, record in zip(paths, read_records(paths), strict=True):
        if isinstance(record, str):
            left_out.append(LeftOut(path, _reason(record, path)))
            continue
        first = seen.setdefault(_identity(record), path)
        if first is path:
            entries.append(Entry(path, record))
        else:
            left_out.append(LeftOut(path, f"the same evaluation as {first.name}"))
    jobs = [job for folder in dirs for job in read_states(folder)]
    return Collected(entries, left_out, _monitors(dirs), jobs)


def check_run_folder(folder: Path) -> None:
    """Refuse what cannot be a run folder.

    Raises:
        UserError: it does not exist, or holds neither records nor training curves nor jobs.
    """
    existing(folder, "run folder", folder=True)
    curves = any(folder.glob("pretrain/*/monitor.jsonl"))
    if not _record_files(folder) and not curves and not read_states(folder):
        raise UserError(
            f"run folder: {folder} has no records/*.json and no pretrain/*/monitor.jsonl; name the "
            "folder that --out named when the evaluations ran"
        )


def _record_files(folder: Path) -> list[Path]:
    return sorted((folder / "records").glob("*.json"))


def _identity(record: Record) -> tuple[Any, ...]:
    backbone, data = record.backbone, record.dataset
    what = (record.benchmark, record.protocol_hash, data.fingerprint, record.seed)
    return (*what, backbone["name"], backbone["sha256"])


def _reason(message: str, path: Path) -> str:
    """The message without the path that opens it: a report must not depend on where it lies."""
    return message.removeprefix(str(path)).lstrip(": ").replace(str(path), path.name)


def _monitors(dirs: list[Path]) -> dict[str, list[dict[str, Any]]]:
    found = [(file, d) for d in dirs for file in sorted(d.glob("pretrain/*/monitor.jsonl"))]
    names = [file.parent.name for file, _ in found]
    monitors = {}
    for file, folder in found:
        name = file.parent.name
        label = name if names.count(name) == 1 else f"{name} ({folder.resolve().name})"
        if epochs := read_monitor(file):
            monitors[label] = epochs
    return monitors


def read_monitor(path: Path) -> list[dict[str, Any]]:
    """The epochs of a training curve in order, the last line of an epoch counting.

    A line that is not whole (the run was killed while writing it) is passed over, and an epoch
    trained again after a resume appears once.
    """
    epochs: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            epoch = int(row["epoch"])
            epochs[epoch] = {**row, "epoch": epoch, "loss": float(row["loss"])}
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return [epochs[epoch] for epoch in sorted(epochs)]
