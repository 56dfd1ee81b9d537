"""The jobs of a run and how each stands: one small file per job, written by whoever does it.

``ROOT/run/NAME.json`` says what a job is and how it stands; while it is being done, ``NAME.live``
beside it holds a line of progress and is written anew every few seconds. Whoever does a job may be
on another machine than who reads: files appear by rename, and their age is told by the file system's
own clock.
"""

import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from siambench.alive import LOST_AFTER, age, alive, repeated
from siambench.errors import UserError
from siambench.files import temporary_path, write_text

State = Literal["waiting", "queued", "running", "done", "failed", "interrupted", "lost"]


@dataclass(frozen=True)
class JobState:
    """A job of a run.

    Attributes:
        name: e.g. ``"detect voc07-frcnn-c4 simsiam"``.
        state: ``queued`` is with a scheduler; ``interrupted`` was asked to stop and goes on with the
            next run; ``lost`` said that it was running and has not been heard of since.
        verb: what does it.
        benchmark: preset, or the verb where there is none; ``""`` of pre-training and conversion.
        backbone: name of the backbone that it makes or evaluates.
        reason: one line: why it failed, what it waits for.
        retry: the command that does this job alone.
        log: its output's file, relative to the run folder; ``""`` where it went to a terminal.
        host, pid: who does or did it.
        started, ended: ISO times (UTC), or ``""``.
        scheduler_id: a scheduler's number for it, or ``""``.
        progress: of a running job, its last line.
    """

    name: str
    state: State = "waiting"
    verb: str = ""
    benchmark: str = ""
    backbone: str = ""
    reason: str = ""
    retry: str = ""
    log: str = ""
    host: str = ""
    pid: int = 0
    started: str = ""
    ended: str = ""
    scheduler_id: str = ""
    progress: str = ""


_FIELDS = {f.name: f.type for f in fields(JobState)}


def folder_of(root: Path) -> Path:
    """Where a run folder keeps its jobs."""
    return root / "run"


def hold_path(root: Path) -> Path:
    """The file through which `siambench run` holds a run folder: :mod:`siambench.hold`."""
    return folder_of(root) / "hold"


def slug(name: str) -> str:
    """A job's name as a file's: ``"knn in1k-knn a/b"`` is ``knn.in1k-knn.a_b``."""
    return re.sub(r"[^\w.+-]", "_", name.replace(" ", "."))


def state_path(root: Path, name: str) -> Path:
    """The file of the job ``name``."""
    return folder_of(root) / f"{slug(name)}.json"


def write_state(root: Path, state: JobState) -> None:
    """Write ``state``, whole or not at all."""
    body = {k: v for k, v in asdict(state).items() if k != "progress"}
    write_text(state_path(root, state.name), json.dumps(body, indent=1) + "\n")


def read_states(root: Path) -> list[JobState]:
    """All jobs of a run folder, by file name; none where nothing was run there.

    A file that is no job's is passed over. A job that says that it is running and has not been heard
    of is ``lost``.
    """
    folder = folder_of(root)
    files = sorted(folder.glob("*.json"))
    states = [state for file in files if (state := _read(file)) is not None]
    return [_heard_of(root, state) if state.state == "running" else state for state in states]


def _read(path: Path) -> JobState | None:
    with suppress(OSError, ValueError, TypeError):
        body = json.loads(path.read_text(encoding="utf-8"))
        state = JobState(**{k: v for k, v in body.items() if k in _FIELDS})
        if all(isinstance(v, int if k == "pid" else str) for k, v in asdict(state).items()):
            return state
    return None


def _heard_of(root: Path, state: JobState) -> JobState:
    """``state`` of a running job with its progress, or as lost."""
    live = state_path(root, state.name).with_suffix(".live")
    with suppress(OSError):
        if age(live) <= LOST_AFTER and (state.host != platform.node() or alive(state.pid)):
            return replace(state, progress=live.read_text(encoding="utf-8").strip())
    where = f"{state.host}, process {state.pid}"
    return replace(state, state="lost", reason=f"not heard of again ({where}): killed?")


@contextmanager
def doing(root: Path, state: JobState, tell: Callable[[], str]) -> Iterator[None]:
    """Say in the job's file that this process does it, that it is alive, and how it ended.

    An exception that leaves the body is the reason why it failed; KeyboardInterrupt means that it was
    asked to stop.
    """
    state = replace(
        state, state="running", reason="", host=platform.node(), pid=os.getpid(), started=_now()
    )
    write_state(root, replace(state, ended=""))
    ended: State = "done"
    reason = ""
    live = state_path(root, state.name).with_suffix(".live")

    def beat() -> None:
        temporary = temporary_path(live)
        temporary.write_text(tell() + "\n", encoding="utf-8")
        os.replace(temporary, live)

    beat()
    try:
        with repeated(beat):
            yield
    except (KeyboardInterrupt, SystemExit):  # the latter from submitit, when it requeues
        ended = "interrupted"
        raise
    except BaseException as error:
        ended, reason = "failed", why(error)
        raise
    finally:
        live.unlink(missing_ok=True)
        write_state(root, replace(state, state=ended, reason=reason, ended=_now()))


def why(error: BaseException) -> str:
    """An error as the one line that says why a job failed; ours carry their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
