"""Slurm, through submitit: arrays of alike jobs, behind what they need, requeued when preempted."""

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.jobs import Job
from pipeline.runfile import ExecutorConfig, demands
from pipeline.task import make_task, tasks_folder
from siambench.errors import UserError
from siambench.jobs import JobState, write_state
from siambench.progress import say


def slurm(
    root: Path, jobs: list[Job], states: dict[str, JobState], executor: ExecutorConfig, last: Job
) -> dict[str, JobState]:
    """Hand ``jobs`` to Slurm: those that start together as one array, the rest behind what they need.

    What is queued or running already is left there. ``last``, the report, follows when all have ended.

    Raises:
        UserError: this is no machine of a Slurm cluster, or it refused.
    """
    from submitit.core.utils import FailedSubmissionError

    known = queued_ids()
    for name, state in states.items():
        if state.scheduler_id in known and state.scheduler_id:
            say(f"{name}: with Slurm already, {state.scheduler_id}")
        elif state.state in ("queued", "running", "lost"):
            states[name] = replace(state, state="waiting", scheduler_id="")
    todo = [
        job
        for job in jobs
        if states[job.name].state not in ("failed", "done") and not states[job.name].scheduler_id
    ]
    fresh = bool(todo)
    try:
        while todo:
            ready = [j for j in todo if not any(n in {t.name for t in todo} for n in j.needs)]
            for (wanted, after), group in _alike(ready, states, executor):
                _submit(root, group, states, executor, dict(wanted), "afterok", after)
            todo = [j for j in todo if j not in ready]
        every = [s.scheduler_id for s in states.values() if s.scheduler_id]
        if every and fresh:
            states[last.name] = replace(
                JobState(last.name, verb=last.verb), retry=f"siambench report {root}"
            )
            wanted = demands(executor, last.verb)
            _submit(root, [last], states, executor, wanted, "afterany", tuple(every))
    except (FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise UserError(f"Slurm refused: {error}; what was queued before stays") from None
    return states


def _alike(
    jobs: Iterable[Job], states: dict[str, JobState], executor: ExecutorConfig
) -> Iterable[tuple[tuple[Any, tuple[str, ...]], list[Job]]]:
    """Jobs that may be one array: the same resources, behind the same jobs."""
    groups: dict[tuple[Any, tuple[str, ...]], list[Job]] = {}
    for job in jobs:
        after = tuple(s.scheduler_id for n in job.needs if (s := states.get(n)) and s.scheduler_id)
        wanted = tuple(demands(executor, job.verb).items())
        groups.setdefault((wanted, after), []).append(job)
    return groups.items()


def _submit(
    root: Path,
    jobs: list[Job],
    states: dict[str, JobState],
    executor: ExecutorConfig,
    wanted: dict[str, float],
    condition: str,
    after: tuple[str, ...],
) -> None:
    """One array (or one job) of alike jobs; their files then say that they are queued."""
    import submitit

    if submitit.SlurmExecutor.affinity() < 0:
        raise UserError("executor: no srun here; start this on a machine of the Slurm cluster")
    starter = submitit.SlurmExecutor(
        tasks_folder(root).resolve(), max_num_timeout=executor.requeues
    )
    gpus, nodes = int(wanted["gpus"]), int(wanted["nodes"])
    extra: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes"}
    optional = {
        "partition": executor.partition,
        "account": executor.account,
        "qos": executor.qos,
        "constraint": executor.constraint,
        "mem": f"{int(wanted['memory_gb'])}GB" if wanted["memory_gb"] else "",
        "gpus_per_node": gpus,
        "setup": executor.setup,
        "dependency": f"{condition}:{':'.join(after)}" if after else "",
    }
    if executor.at_once:
        optional["array_parallelism"] = executor.at_once
    starter.update_parameters(
        job_name=jobs[0].name if len(jobs) == 1 else f"{root.name}: {jobs[0].verb} and more",
        time=max(1, round(60 * wanted["hours"])),
        nodes=nodes,
        ntasks_per_node=1,  # which starts a process per GPU
        cpus_per_task=int(wanted["cpus"]),
        signal_delay_s=executor.grace_seconds,
        additional_parameters={**extra, **executor.extra},
        **{key: value for key, value in optional.items() if value},
    )
    tasks = [make_task(root, states[job.name], max(1, gpus), nodes) for job in jobs]
    for job, handle in zip(jobs, starter.submit_array(tasks), strict=True):
        queued = replace(
            states[job.name], state="queued", reason="", scheduler_id=str(handle.job_id)
        )
        states[job.name] = queued
        write_state(root, queued)
        say(
            f"queued: {job.name} as {handle.job_id}"
            + (f" behind {', '.join(after)}" if after else "")
        )


def queued_ids() -> set[str]:
    """Slurm's numbers of all jobs of this user that wait or run.

    Raises:
        UserError: Slurm is not here, or did not answer.
    """
    words = ["squeue", "-h", "-r", "--me", "-o", "%i"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"executor: `{' '.join(words)}` failed ({error}); start this on a machine of the Slurm cluster"
        ) from None
    return set(done.stdout.split())
