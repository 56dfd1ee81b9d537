"""Several jobs at once on this machine, each on GPUs of its own, through submitit."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.here import blocked
from pipeline.jobs import Job
from pipeline.runfile import ExecutorConfig, demands
from pipeline.task import log_name, make_task, tasks_folder
from siambench.errors import UserError
from siambench.jobs import JobState, read_states, state_path, write_state
from siambench.progress import say
from siambench.signals import SIGNALS

_LOOK_EVERY = 1.0  # seconds between two looks at the jobs
_NEVER = 60 * 24 * 365  # minutes: no time limit


def local(
    root: Path, jobs: list[Job], states: dict[str, JobState], executor: ExecutorConfig
) -> dict[str, JobState]:
    """Do ``jobs`` in processes of their own, as many at once as there are GPUs (or ``at_once``).

    One that an earlier `run`, since killed, has left at work is waited for.

    Raises:
        KeyboardInterrupt: Ctrl-C; the jobs have saved and ended.
        UserError: a job takes more GPUs than the machine has.
    """
    import submitit

    free = gpus_here()
    for job in jobs:
        if (wanted := int(demands(executor, job.verb)["gpus"])) > len(free):
            raise UserError(
                f"{job.name} takes {wanted} GPUs and this machine has {len(free)}; set executor.gpus"
            )
    slots = executor.at_once or max(1, len(free) // max(1, executor.gpus))
    waiting = [job for job in jobs if states[job.name].state != "failed"]
    running: dict[str, tuple[Any, list[int]]] = {}
    for job in [job for job in waiting if states[job.name].state == "running"]:
        wanted = int(demands(executor, job.verb)["gpus"])
        running[job.name] = (_Left(root, job.name), [free.pop(0) for _ in range(wanted) if free])
        waiting.remove(job)
        say(f"still at work: {job.name}, process {states[job.name].pid}")
    with _asked_to_stop() as asked:
        told = 0
        while running or (waiting and not asked()):
            for name, (handle, taken) in list(running.items()):
                if asked() > told:
                    _tell(root, name)
                if handle.done():
                    del running[name]
                    free += taken
                    states[name] = _ended(root, states[name])
                    mark = {"done": "done", "failed": "failed"}.get(states[name].state, "stopped")
                    behind = f": {states[name].reason}" if states[name].reason else ""
                    say(f"{mark}: {name}{behind}")
            told = asked()
            for job in [] if told else list(waiting):
                wanted = int(demands(executor, job.verb)["gpus"])
                if name := blocked(job, states):
                    waiting.remove(job)
                    states[job.name] = replace(states[job.name], reason=f"needs {name}")
                elif len(running) < slots and wanted <= len(free) and _ready(job, states, jobs):
                    taken = [free.pop(0) for _ in range(wanted)]
                    waiting.remove(job)
                    task = make_task(root, states[job.name], max(1, wanted), 1)
                    starter = submitit.LocalExecutor(folder=tasks_folder(root))
                    starter.update_parameters(
                        timeout_min=_NEVER, gpus_per_node=len(taken), visible_gpus=taken or ()
                    )
                    with _deaf():
                        running[job.name] = (starter.submit(task), taken)
                    on = f" on GPU {', '.join(map(str, taken))}" if taken else ""
                    say(f"started: {job.name}{on}; log {task.log}")
            time.sleep(_LOOK_EVERY)
    if told:
        raise KeyboardInterrupt
    return states


class _Left:
    """A job that another `run` started, by its file."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name

    def done(self) -> bool:
        """Whether it has ended, or is not heard of any more."""
        states = {state.name: state.state for state in read_states(self.root)}
        return states.get(self.name) != "running"


def gpus_here() -> list[int]:
    """The GPUs of this machine that this process may use, by number."""
    if seen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [int(n) for n in seen.split(",") if n.strip().isdigit()]
    import torch

    return list(range(torch.cuda.device_count()))


def _ready(job: Job, states: dict[str, JobState], jobs: list[Job]) -> bool:
    """Whether all that ``job`` needs is done."""
    own = {j.name for j in jobs}
    return all(states[n].state == "done" for n in job.needs if n in own)


def _ended(root: Path, state: JobState) -> JobState:
    """The state of a job whose process has ended, as it left it."""
    for found in read_states(root):
        if found.name == state.name and found.state in ("done", "failed", "interrupted"):
            return found
    log = log_name(state_path(root, state.name), root)
    lost = replace(state, state="failed", reason=f"its process died; see {root / log}", log=log)
    write_state(root, lost)
    return lost


def _tell(root: Path, name: str) -> None:
    """Ask a running job of this machine to stop."""
    for state in read_states(root):
        if state.name == name and state.state == "running":
            os.kill(state.pid, signal.SIGUSR1)


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started here does not hear the terminal's Ctrl-C: it is told by this process."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], int]]:
    """How often Ctrl-C, SIGTERM or SIGUSR1 came while the body runs."""
    count = 0

    def note(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        what = "waiting for the jobs to save" if count == 1 else "ending them now"
        say(f"{signal.Signals(number).name}: {what}")

    before = {n: signal.signal(n, note) for n in SIGNALS}
    try:
        yield lambda: count
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
