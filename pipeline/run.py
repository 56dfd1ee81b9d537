"""Doing a run file: data, backbones, benchmarks, report. What is done already is not done again."""

import json
import shlex
import time
from dataclasses import replace
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.here import here
from pipeline.jobs import Job, Run, lay_out
from pipeline.plan import span
from pipeline.standing import data_key, standings
from pipeline.verbs import EVALUATIONS, VERBS
from siambench.data.digit_scenes import make
from siambench.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER, UserError
from siambench.files import writable_folder, write_text
from siambench.hold import held
from siambench.jobs import JobState, folder_of, hold_path, read_states, state_path, write_state
from siambench.progress import say


def run(config: RunConfig) -> int:
    """Do the run; print what failed and where the report is; return the exit code.

    Every setting is checked before anything is written, and every data set before anything is
    trained. A job that fails stops only those that need it; the same command tries them again.

    Raises:
        UserError: the run file or one of its settings is wrong, or another process does this run.
        KeyboardInterrupt: Ctrl-C; the job that it met has saved.
    """
    started = time.monotonic()
    plan = lay_out(config)
    writable_folder(plan.root, "--root: folder")
    with held(hold_path(plan.root), plan.root):
        if plan.scenes is not None:
            say(f"data: digit scenes in {make(plan.scenes)}")
        states = _states(plan)
        _check_data(plan, states)
        executor = plan.file.executor
        if executor.kind == "slurm" and any(s.state != "done" for s in states.values()):
            return _hand_over(plan, states)
        if executor.kind != "here":
            from pipeline.local import local

            todo = [job for job in plan.jobs if states[job.name].state != "done"]
            states = local(plan.root, todo, states, executor)
        else:
            states = here(plan.root, plan.jobs, states)
        for job in plan.jobs:
            if states[job.name].state in ("waiting", "failed"):
                write_state(plan.root, states[job.name])
        from reports.report import write_report

        report = write_report([plan.root], plan.root / "report.md", list(plan.file.backbones))
    return _ending(plan, states, report, time.monotonic() - started)


def _states(plan: Run) -> dict[str, JobState]:
    """A file per job with its configuration, and one that says how it stands; files of old jobs go."""
    before = {state.name: state for state in read_states(plan.root)}
    apart = plan.file.executor.kind != "here"
    left = standings(plan, look=True) if apart else {}
    states = {}
    for job in plan.jobs:
        settings = state_path(plan.root, job.name).with_suffix(".yaml")
        state = JobState(
            job.name,
            verb=job.verb,
            benchmark=job.benchmark,
            backbone=job.backbone,
            retry=f"siambench {job.verb} --config {shlex.quote(str(settings))}",
        )
        if apart and not left[job.name].left:
            state = replace(state, state="done")
        elif (old := before.get(job.name)) and old.state in ("queued", "running", "lost"):
            kept = {
                "scheduler_id": old.scheduler_id,
                "host": old.host,
                "pid": old.pid,
                "log": old.log,
            }
            state = replace(state, state=old.state, **kept)
        write_text(settings, json.dumps(job.values, indent=1) + "\n")  # YAML as well
        if state.state in ("waiting", "done"):
            write_state(plan.root, state)
        states[job.name] = state
    known = {*states, "report"} if plan.file.executor.kind == "slurm" else set(states)
    for name in set(before) - known:
        for path in folder_of(plan.root).glob(f"{state_path(plan.root, name).stem}.*"):
            path.unlink(missing_ok=True)
    if not apart:  # nobody else works here: what once ran does not
        states = {n: replace(s, state="waiting", scheduler_id="") for n, s in states.items()}
    return states


def _check_data(plan: Run, states: dict[str, JobState]) -> None:
    """Open every data set before days of pre-training; a benchmark whose data are bad has failed."""
    left = standings(plan)
    if not any(left[job.name].left for job in plan.jobs if job.verb == "pretrain"):
        return  # each evaluation checks its own before it does anything
    seen: dict[str, str] = {}
    for job in plan.jobs:
        if job.verb not in EVALUATIONS or not left[job.name].left:
            continue
        problem = left[job.name].problem
        config = job.config
        key = data_key(job)
        if not problem and key not in seen:
            say(f"checking the data of {job.benchmark}: {config.data}")
            seen[key] = ""
            try:
                VERBS[job.verb].load_benchmark().open_data(config)
            except UserError as error:
                for line in error.details:
                    say(line)
                seen[key] = str(error)
        if problem or seen[key]:
            state = replace(states[job.name], state="failed", reason=problem or seen[key])
            states[job.name] = state
            say(f"failed: {job.name}: {state.reason}")


def _hand_over(plan: Run, states: dict[str, JobState]) -> int:
    """Give the jobs to Slurm and say how to watch them."""
    from pipeline.slurm import slurm

    values = {"dirs": [str(plan.root)], "order": list(plan.file.backbones)}
    report = Job("report", "report", None, values)
    write_text(state_path(plan.root, "report").with_suffix(".yaml"), json.dumps(values) + "\n")
    states = slurm(plan.root, plan.jobs, states, plan.file.executor, report)
    failed = [s for s in states.values() if s.state == "failed"]
    for state in failed:
        write_state(plan.root, state)
        print(f"FAILED {state.name}: {state.reason}")
    queued = sum(state.state in ("queued", "running") for state in states.values())
    print(f"{queued} jobs with Slurm; watch them: siambench status {plan.root}")
    return EXIT_USER if failed else EXIT_DONE


def _ending(plan: Run, states: dict[str, JobState], report: Path, seconds: float) -> int:
    """Print what failed, why and how to try it again, then where the report is; the exit code."""
    every = [states[job.name] for job in plan.jobs]
    failed = [state for state in every if state.state in ("failed", "interrupted", "lost")]
    untried = [state for state in every if state.state == "waiting"]
    counts = [f"{len(every) - len(failed) - len(untried)} done", f"{len(failed)} failed"]
    if untried:
        counts.append(f"{len(untried)} not tried")
    if failed:
        print(f"{', '.join(counts)} in {span(seconds)}; the same command tries them again")
    for state in failed:
        print(f"FAILED {state.name}: {state.reason or 'it was asked to stop'}")
        print(f"  alone: {state.retry}")
    for state in untried:
        print(f"not tried: {state.name} ({state.reason})")
    print(f"report: {report}")
    if not failed:
        return EXIT_DONE
    fault = any(_fault(state.reason) for state in failed)
    return EXIT_FAULT if fault else EXIT_USER


def _fault(reason: str) -> bool:
    """Whether a job failed by an exception that is not the user's."""
    return reason.split(":")[0].endswith(("Error", "Exception"))
