"""What of a run is done already, told from its files; data sets are opened only where that is asked for."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.jobs import Job, Run
from pipeline.verbs import VERBS
from siambench.config import EvaluationConfig, protocol_of
from siambench.errors import UserError
from siambench.files import digest_of, sha256_file
from siambench.record import Record, read_record


@dataclass(frozen=True)
class Standing:
    """How much of a job is left.

    Attributes:
        left: trials of an evaluation without a record; 1 or 0 of another job.
        trials: of the evaluation; 1 of another job.
        problem: why it cannot be done here, e.g. that its engine is not installed; or ``""``.
    """

    left: int
    trials: int = 1
    problem: str = ""


def records_in(folders: Iterable[Path]) -> list[Record]:
    """The valid records of run folders."""
    found = []
    for folder in folders:
        for path in sorted((folder / "records").glob("*.json")):
            try:
                found.append(read_record(path))
            except (UserError, OSError):
                continue
    return found


Identity = tuple[str, str, str, str, int, int]


def standings(run: Run, look: bool = False) -> dict[str, Standing]:
    """The standing of every job by its name.

    A record counts for an evaluation if backbone, protocol, seed and trial are its own.

    Args:
        run: the run.
        look: open the data of what is recorded: records of other data do not count then. Without, that is
            seen when the job runs.
    """
    recorded: dict[Identity, set[str]] = {}
    for r in records_in([run.root]):
        backbone = r.backbone["name"], r.backbone["sha256"]
        identity = (r.benchmark, r.protocol_hash, *backbone, r.seed, r.trial)
        recorded.setdefault(identity, set()).add(r.dataset.fingerprint)
    digests: dict[str, str] = {}
    prints: dict[str, str] = {}
    found: dict[str, Standing] = {}
    for job in run.jobs:
        ready = all(found[name].left == 0 for name in job.needs)
        if job.verb == "pretrain":
            path = Path(job.config.out) / f"checkpoint_{job.config.epochs:04d}.pth"
            found[job.name] = Standing(int(not path.is_file()))
        elif job.verb == "convert":
            found[job.name] = Standing(int(not (ready and _converted(job.config))))
        else:
            standing = _evaluated(job, recorded if ready else {}, digests)
            if look and standing.left < standing.trials:
                standing = _looked_at(job, recorded, digests, prints)
            found[job.name] = standing
    return found


def data_key(job: Job) -> str:
    """Equal for evaluations that open the same data in the same way."""
    apart = {"backbone": "", "name": "", "only_trial": -1}
    return json.dumps({**job.values, **apart, "verb": job.verb}, sort_keys=True)


def _looked_at(
    job: Job, recorded: dict[Identity, set[str]], digests: dict[str, str], prints: dict[str, str]
) -> Standing:
    """The standing among the records of the data as they are now."""
    if (key := data_key(job)) not in prints:
        try:
            prints[key] = VERBS[job.verb].load_benchmark().open_data(job.config).info.fingerprint
        except UserError as error:
            trials = _evaluated(job, {}, digests).trials
            return Standing(trials, trials, str(error))
    same = {identity: found for identity, found in recorded.items() if prints[key] in found}
    return _evaluated(job, same, digests)


def _converted(config: Any) -> bool:
    """Whether the backbone file is there and of the source as it is now."""
    from siambench.backbone import read_meta

    out, source = Path(config.out), Path(config.source)
    if not out.is_file():
        return False
    try:
        made_of = read_meta(out).source_sha256
    except UserError:
        return False
    return not source.is_file() or made_of == sha256_file(source)


def _evaluated(job: Job, recorded: dict[Identity, set[str]], digests: dict[str, str]) -> Standing:
    """The standing of an evaluation."""
    config: EvaluationConfig = job.config
    benchmark = VERBS[job.verb].load_benchmark()
    total = config.trials if benchmark.seeded(config) else 1
    trials = [t for t in range(total) if config.only_trial in (-1, t)]
    try:
        engine = benchmark.engine(config)
    except UserError as error:
        return Standing(len(trials), len(trials), str(error))
    path = config.backbone
    if not recorded or not Path(path).is_file():
        return Standing(len(trials), len(trials))
    if path not in digests:
        digests[path] = sha256_file(path)
    hashed = digest_of({**protocol_of(config), "version": benchmark.version, "engine": engine})
    backbone = config.name or Path(path).stem, digests[path]
    seeds = [config.seed + t if benchmark.seeded(config) else 0 for t in trials]
    done = sum(
        (config.preset or benchmark.verb, hashed, *backbone, seed, t) in recorded
        for seed, t in zip(seeds, trials, strict=True)
    )
    return Standing(len(trials) - done, len(trials))
