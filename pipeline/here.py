"""The executor by default: one job after the other, in this process."""

import traceback
from dataclasses import replace
from pathlib import Path

from pipeline.jobs import Job
from pipeline.verbs import VERBS
from siambench.errors import UserError
from siambench.jobs import JobState, doing, why
from siambench.progress import latest, say


def here(root: Path, jobs: list[Job], states: dict[str, JobState]) -> dict[str, JobState]:
    """Do ``jobs`` one after the other in this process; how each ended.

    A job that fails stops only those that need it. KeyboardInterrupt passes through: the job that it
    met has saved what it had.
    """

    def work(number: int, job: Job) -> None:
        say(f"[{number}/{len(jobs)}] {job.name}")
        state = states[job.name]
        try:
            with doing(root, state, latest):
                VERBS[job.verb](job.config)
        except UserError as error:
            for line in (*error.details, f"failed: {error}"):
                say(line)
            states[job.name] = replace(state, state="failed", reason=str(error))
        except Exception as error:
            traceback.print_exc()
            states[job.name] = replace(state, state="failed", reason=why(error))
        else:
            states[job.name] = replace(state, state="done", reason="")

    for number, job in enumerate(jobs, 1):
        if states[job.name].state == "failed":  # its data are bad
            continue
        if name := blocked(job, states):
            states[job.name] = replace(states[job.name], state="waiting", reason=f"needs {name}")
            continue
        work(number, job)
    return states


def blocked(job: Job, states: dict[str, JobState]) -> str:
    """The job that failed, or waits for one that did, for which ``job`` cannot be done; or ``""``."""
    for name in job.needs:
        state = states.get(name)
        if state and (
            state.state in ("failed", "interrupted") or (state.state == "waiting" and state.reason)
        ):
            return name
    return ""
