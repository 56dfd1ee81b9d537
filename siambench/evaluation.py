"""What every evaluation shares: open, skip what is already recorded, time, record.

A benchmark is a function from (backbone, data, protocol) to metrics, and a function that opens and
checks its data before any work. This module turns the two into records on disk.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from siambench.backbone import Backbone
from siambench.checkpoints.source import load_backbone
from siambench.config import EvaluationConfig, check_trials, overridden, protocol_of
from siambench.device import (
    hardware,
    peak_memory_bytes,
    reset_peak_memory,
    seed_everything,
    share_cores,
    software_versions,
)
from siambench.distributed import World, join, local_size
from siambench.errors import UserError
from siambench.files import digest_of, writable_folder
from siambench.progress import say
from siambench.record import (
    DatasetInfo,
    Metric,
    Record,
    read_record,
    record_key,
    write_record,
)

_ALONE = World(0, 1, torch.device("cpu"))


class Data(Protocol):
    """What ``open_data`` returns: anything that can describe itself."""

    @property
    def info(self) -> DatasetInfo:
        """Name, fingerprint and counts."""
        ...


Parallel = Literal["features", "steps"]

C = TypeVar("C", bound=EvaluationConfig)
D = TypeVar("D", bound=Data)


@dataclass(frozen=True)
class Job:
    """One trial, as an evaluator sees it.

    Attributes:
        seed: of this trial; the global generators are already seeded with it.
        trial: 0, 1, ...
        device: where to work.
        workers: loader processes.
        folder: for checkpoints, curves and predictions of this trial; made on first use. A
            checkpoint found here belongs to this very evaluation and may be resumed; files named
            ``checkpoint*`` are removed once the record is written.
        key: the record's identity.
        title: for progress bars, e.g. ``"knn simsiam"``.
        world: the processes of the job.
        cache_folder: the feature cache's, if it is named.
    """

    seed: int
    trial: int
    device: torch.device
    workers: int
    folder: Path
    key: str
    title: str
    world: World = _ALONE
    cache_folder: Path | None = None

    @property
    def cache(self) -> Path:
        """Folder of the feature cache: OUT/features where none is named."""
        return self.cache_folder or self.folder.parent.parent / "features"


@dataclass(frozen=True)
class Benchmark(Generic[C, D]):
    """A verb's evaluation.

    Attributes:
        verb: ``"linear"``, ``"knn"``, ``"svm"``, ``"detect"``, ``"segment"``.
        version: raised when a change of code changes results; part of the protocol hash.
        engine: library that does the work with a configuration, e.g. ``"torch"``, ``"scikit-learn"``.
        open_data: reads and checks the data; raises UserError before hours of work.
        evaluate: the benchmark itself.
        parallel: what several processes share: ``"features"`` (they extract together, through the
            cache alone; then the first goes on by itself), or ``"steps"`` (all take part to the end).
            Process 0 returns the metrics.
        seeded: whether the seed changes the result; if not, more than one trial would repeat it.
    """

    verb: str
    version: int
    engine: Callable[[C], str]
    open_data: Callable[[C], D]
    evaluate: Callable[[Backbone, D, C, Job], list[Metric]]
    parallel: Callable[[C], Parallel]
    seeded: Callable[[C], bool] = lambda config: True


def run_evaluation(benchmark: Benchmark[C, D], config: C) -> list[Record]:
    """Run all trials of a benchmark that have no valid record yet; return all records.

    Records are ``OUT/records/BENCHMARK-BACKBONE-KEY.json``; the scratch folder of a trial is
    ``OUT/jobs/BENCHMARK-BACKBONE-KEY``. Under torchrun the first process writes and returns the
    records, the others return none.

    Raises:
        UserError: the backbone, the data or the protocol is wrong; nothing was computed.
    """
    with join(config.device) as world:
        return _run_trials(benchmark, config, world)


def _run_trials(benchmark: Benchmark[C, D], config: C, world: World) -> list[Record]:
    parallel = benchmark.parallel(config)
    world.from_first(lambda: check_trials(config))
    overrides = world.from_first(lambda: overridden(config, benchmark.verb))
    world.from_first(lambda: writable_folder(config.out, "--out: folder"))
    trials = config.trials
    if trials > 1 and not benchmark.seeded(config):
        say(f"{config.preset or benchmark.verb}: nothing in it is random, so one trial is all")
        trials = 1
    engine = world.from_first(lambda: benchmark.engine(config))
    backbone = world.from_first(lambda: load_backbone(config.backbone))
    backbone.name = config.name or backbone.name
    data = world.from_first(lambda: benchmark.open_data(config))
    name = config.preset or benchmark.verb
    protocol = {**protocol_of(config), "version": benchmark.version, "engine": engine}
    protocol_hash = digest_of(protocol)
    workers = share_cores(config.workers, world.device, local_size())
    records = []
    for trial in range(trials) if config.only_trial < 0 else [min(config.only_trial, trials - 1)]:
        seed = config.seed + trial if benchmark.seeded(config) else 0
        fingerprint = data.info.fingerprint
        key = record_key(name, protocol_hash, backbone.sha256, fingerprint, seed, trial)
        stem = f"{name}-{backbone.name}-{key}"
        path = Path(config.out) / "records" / f"{stem}.json"
        # With features alone in common no process waits for another: the first may be at work for hours.
        one = world if parallel == "steps" else World(0, 1, world.device)
        record = one.from_first(lambda path=path, key=key: valid_record(path, key))  # type: ignore[misc]
        if record is None:
            job = Job(
                seed=seed,
                trial=trial,
                device=world.device,
                workers=workers,
                folder=Path(config.out) / "jobs" / stem,
                key=key,
                title=f"{name} {backbone.name}" + (f" #{trial}" if trials > 1 else ""),
                world=world,
                cache_folder=Path(cache) if (cache := getattr(config, "cache", "")) else None,
            )
            record = _run_trial(benchmark, config, backbone, data, job, name, protocol, overrides)
            if record is None:
                continue
            write_record(path, record)
            for checkpoint in job.folder.glob("checkpoint*"):
                checkpoint.unlink()
        else:
            say(f"{stem}: already recorded")
        records.append(record)
    return records if world.rank == 0 else []


def valid_record(path: Path, key: str) -> Record | None:
    """The record at ``path``, or None when there is none or it is not ``key``'s (which is said)."""
    if not path.exists():
        return None
    try:
        record = read_record(path)
        if record.key != key:
            raise UserError(f"{path} is the record of another evaluation")
    except UserError as error:
        say(f"{error}; computing it again")
        return None
    return record


def _run_trial(
    benchmark: Benchmark[C, D],
    config: C,
    backbone: Backbone,
    data: D,
    job: Job,
    name: str,
    protocol: dict[str, Any],
    overrides: list[str],
) -> Record | None:
    """The trial's record; None in processes other than the first."""
    seed_everything(job.seed)
    reset_peak_memory(job.device)
    started, start = datetime.now(UTC), time.monotonic()
    metrics = benchmark.evaluate(backbone.to(job.device), data, config, job)
    if job.world.rank:
        return None
    meta = backbone.meta
    return Record(
        benchmark=name,
        verb=benchmark.verb,
        protocol=protocol,
        protocol_hash=digest_of(protocol),
        backbone={
            "name": backbone.name,
            "sha256": backbone.sha256,
            "arch": meta.arch,
            "method": meta.method,
            "epochs": meta.epochs,
        },
        dataset=data.info,
        seed=job.seed,
        trial=job.trial,
        engine=protocol["engine"],
        metrics=metrics,
        seconds=round(time.monotonic() - start, 3),
        peak_memory_bytes=peak_memory_bytes(job.device),
        software=software_versions(),
        hardware=hardware(job.device),
        started=started.isoformat(timespec="seconds"),
        overrides=overrides,
    )
