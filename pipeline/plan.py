"""``siambench plan``: the jobs as a tree: what is done, what will run, what waits for what, how long."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.estimate import Earlier, Estimate
from pipeline.jobs import Job, Run, lay_out
from pipeline.standing import Standing, standings
from siambench.errors import EXIT_DONE, EXIT_USER
from siambench.hold import holder
from siambench.jobs import hold_path

_WHO = {
    "here": "one job after the other in this process",
    "local": "jobs in processes of their own on this machine",
    "slurm": "jobs on Slurm",
}


@dataclass(frozen=True)
class Planned:
    """A job of a plan.

    Attributes:
        job: the job.
        standing: what is left of it.
        estimate: what that takes.
        waits_for: jobs that are not done and that it needs.
    """

    job: Job
    standing: Standing
    estimate: Estimate
    waits_for: tuple[str, ...]


def plan(config: RunConfig) -> int:
    """Print the plan of a run file; nothing is written.

    Raises:
        UserError: the run file or one of its settings is wrong.
    """
    run = lay_out(config)
    planned = planned_jobs(run)
    _print_tree(run, planned)
    for line in summary(run, planned):
        print(line)
    return EXIT_USER if any(p.standing.problem for p in planned) else EXIT_DONE


def planned_jobs(run: Run) -> list[Planned]:
    """Every job with what is left of it and what that takes."""
    left, earlier = standings(run), Earlier(run)
    return [
        Planned(
            job,
            left[job.name],
            earlier.estimate(job, left[job.name]),
            tuple(name for name in job.needs if left[name].left),
        )
        for job in run.jobs
    ]


def summary(run: Run, planned: Sequence[Planned]) -> list[str]:
    """How many jobs, how long, how much disk, how many GPU hours; and who holds the folder."""
    todo = [p for p in planned if p.standing.left]
    known = [p for p in todo if p.estimate.seconds is not None]
    seconds = sum(p.estimate.seconds or 0.0 for p in known)
    hours = sum((p.estimate.seconds or 0.0) / 3600 * p.estimate.gpus for p in known)
    new = len(todo) - len(known)
    parts = [f"{len(planned)} jobs: {len(planned) - len(todo)} done, {len(todo)} to do"]
    if todo:
        about = f"about {span(seconds)}" if known else "of unknown length"
        parts.append(
            about + (f", and {new} that no earlier run has timed" if new and known else "")
        )
    disk = sum(p.estimate.disk_bytes for p in planned)
    free = shutil.disk_usage(_existing(run.root)).free
    lines = ["; ".join(parts)]
    if disk:
        lines.append(
            f"disk: {size(disk)} for backbones and checkpoints, features and curves besides; "
            f"{size(free)} free"
        )
    if any(p.estimate.gpus for p in todo):
        lines.append(
            f"GPU hours: about {hours:.1f}" + (f", and those of {new} jobs" if new else "")
        )
    if who := holder(hold_path(run.root)):
        lines.append(f"{run.root} is held by process {who.pid} on {who.host} since {who.since}")
    return lines


def _print_tree(run: Run, planned: Sequence[Planned]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    title = f"{run.file.name} in {run.root}, {_WHO[run.file.executor.kind]}"
    trunk = Tree(Text(title, style="bold"))
    if run.scenes is not None:
        trunk.add(Text(f"data: digit scenes in {run.scenes.out}"))
    branches: dict[str, Any] = {}
    for p in planned:
        above = branches[p.job.needs[0]] if p.job.needs else trunk
        branches[p.job.name] = above.add(Text(*_line(p)))
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a tree is cut at the edge, and a file has none
    console.print(trunk)


def _line(p: Planned) -> tuple[str, str]:
    """A job's line in the tree, and its style."""
    name, standing = p.job.name, p.standing
    part = f", {standing.trials - standing.left} of {standing.trials} trials done"
    some = part if 0 < standing.left < standing.trials else ""
    many = f", {standing.trials} trials" if standing.trials > 1 and not some else ""
    if standing.problem:
        return f"{name}: cannot run: {standing.problem}", "red"
    if not standing.left:
        return f"{name}: done", "green"
    seconds = p.estimate.seconds
    length = "never timed" if seconds is None else f"about {span(seconds)}"
    how = "waits" if p.waits_for else "will run"
    return f"{name}: {how}{some}{many}, {length}", "yellow" if p.waits_for else "cyan"


def span(seconds: float) -> str:
    """A length of time in its two largest units: ``"3 h 20 min"``, ``"45 s"``."""
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    parts = []
    for name, length in units:
        if whole >= length or (parts and len(parts) < 2):
            if count := whole // length:
                parts.append(f"{count} {name}")
            whole %= length
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def size(count: float) -> str:
    """Bytes with their largest decimal unit: ``"1.3 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
