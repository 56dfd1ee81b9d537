"""What of a run is done already, told from its files alone: no data set is opened."""

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


def standings(run: Run) -> dict[str, Standing]:
    """The standing of every job by its name.

    A record counts for an evaluation if backbone, protocol, seed and trial are its own; whether the
    data are still the same is seen when the job runs.
    """
    recorded = {
        (r.benchmark, r.protocol_hash, r.backbone["sha256"], r.seed, r.trial)
        for r in records_in([run.root])
    }
    digests: dict[str, str] = {}
    found: dict[str, Standing] = {}
    for job in run.jobs:
        ready = all(found[name].left == 0 for name in job.needs)
        if job.verb == "pretrain":
            path = Path(job.config.out) / f"checkpoint_{job.config.epochs:04d}.pth"
            found[job.name] = Standing(int(not path.is_file()))
        elif job.verb == "convert":
            found[job.name] = Standing(int(not (ready and _converted(job.config))))
        else:
            found[job.name] = _evaluated(job, recorded if ready else set(), digests)
    return found


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


def _evaluated(
    job: Job, recorded: set[tuple[str, str, str, int, int]], digests: dict[str, str]
) -> Standing:
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
    name = config.preset or benchmark.verb
    done = sum((name, hashed, digests[path], config.seed + t, t) in recorded for t in trials)
    return Standing(len(trials) - done, len(trials))
