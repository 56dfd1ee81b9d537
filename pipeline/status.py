"""``siambench status``: how a run stands, from any terminal and any machine that sees its folder."""

import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import StatusConfig
from pipeline.plan import span
from siambench.errors import EXIT_DONE, EXIT_USER, UserError
from siambench.files import existing
from siambench.hold import holder
from siambench.jobs import JobState, hold_path, read_states

_EVERY = 2.0  # seconds between two looks
_STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "lost": "red",
    "interrupted": "yellow",
}
_OPEN = ("waiting", "queued", "running")


def status(config: StatusConfig) -> int:
    """Print a line per job; on a terminal again and again until nothing is left to come.

    Returns:
        0, or 2 where a job failed or was lost.

    Raises:
        UserError: the folder is no run's.
    """
    root = existing(config.dir, "run folder", folder=True)
    states = _states(root)
    if not states:
        raise UserError(f"{root} has no jobs; name the folder of a `siambench run`")
    watch = sys.stdout.isatty() if config.watch is None else config.watch
    if watch:
        _watch(root)
    else:
        _console().print(_picture(root, states))
    return EXIT_USER if any(s.state in ("failed", "lost") for s in read_states(root)) else EXIT_DONE


def _states(root: Path) -> list[JobState]:
    """All jobs; what says that it is queued and is not with Slurm any more has to be submitted again."""
    states = read_states(root)
    if not any(s.state == "queued" for s in states) or shutil.which("squeue") is None:
        return states
    from pipeline.slurm import queued_ids

    known = queued_ids()
    gone = "no longer with Slurm; `siambench run` submits it again"
    return [
        replace(s, state="waiting", reason=gone)
        if s.state == "queued" and s.scheduler_id not in known
        else s
        for s in states
    ]


def _watch(root: Path) -> None:
    from rich.live import Live

    with Live(console=_console(), auto_refresh=False) as live:
        while True:
            states = _states(root)
            live.update(_picture(root, states), refresh=True)
            coming = any(s.state in ("queued", "running") for s in states)
            if not coming and holder(hold_path(root)) is None:
                return
            time.sleep(_EVERY)


def _console() -> Any:
    from rich.console import Console

    console = Console(soft_wrap=not sys.stdout.isatty())
    if not sys.stdout.isatty():
        console.width = 1000  # columns are cut at the edge, and a file has none
    return console


def _picture(root: Path, states: list[JobState]) -> Any:
    """All jobs, those that run with their progress, and a last line of counts."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("state", "job", "detail"):
        table.add_column(name, overflow="fold", no_wrap=name != "detail" or not sys.stdout.isatty())
    for state in sorted(states, key=lambda s: (s.state in _OPEN, s.started or "~", s.name)):
        style = _STYLES.get(state.state, "")
        table.add_row(Text(state.state, style=style), Text(state.name), Text(_detail(state)))
    return Group(table, Text(summary(root, states)))


def _detail(state: JobState) -> str:
    """What else there is to say of a job."""
    if state.state == "running":
        return f"{_length(state.started, None)}  {state.progress}  ({state.host})"
    if state.state in ("failed", "lost", "interrupted"):
        return f"{state.reason}  again: {state.retry}".strip()
    if state.state == "done":
        return _length(state.started, state.ended)
    if state.state == "queued":
        return f"Slurm {state.scheduler_id}"
    return state.reason


def summary(root: Path, states: list[JobState]) -> str:
    """``26 jobs: 8 done, 1 running ...``, and who works on them."""
    counts = Counter(state.state for state in states)
    parts = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    who = holder(hold_path(root))
    by = f"; run by process {who.pid} on {who.host} since {who.since}" if who else ""
    return f"{len(states)} jobs: {parts}{by}"


def _length(started: str, ended: str | None) -> str:
    """From one ISO time to another (None: now) as a span; ``""`` where one is not known."""
    try:
        first = datetime.fromisoformat(started)
        last = datetime.now(UTC) if ended is None else datetime.fromisoformat(ended)
        return span((last - first).total_seconds())
    except (ValueError, TypeError):  # TypeError: one of them without a time zone
        return ""
