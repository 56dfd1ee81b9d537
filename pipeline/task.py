"""A job as a command of its own: what an executor starts here, on a GPU of this machine or on a cluster."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from siambench.errors import EXIT_INTERRUPTED, UserError
from siambench.jobs import JobState, doing, folder_of, state_path

_STOPPED = (
    "siambench: interrupted"  # what an interrupted verb says last; torchrun's code is always 1
)


class Task:
    """Runs a verb in a process of its own, or several that torchrun starts; can be pickled.

    It keeps the job's file up to date, writes what the verb says to its log, and passes on what asks
    it to stop: SIGUSR1 once as SIGTERM (finish the step and save), twice as SIGKILL; submitit's signal
    through :meth:`checkpoint`.
    """

    def __init__(
        self, root: Path, state: JobState, words: list[str], processes: int, nodes: int
    ) -> None:
        """Args:
        root: the run folder.
        state: the job.
        words: the verb and its arguments.
        processes: per machine; above 1, or on several machines, torchrun starts them.
        nodes: machines.
        """
        self.root, self.state, self.words = root, state, words
        self.processes, self.nodes = processes, nodes
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = 0

    def __call__(self) -> None:
        """Do the job.

        Raises:
            UserError: it failed; the reason is the last line that it said.
            SystemExit: it was stopped.
        """
        signal.signal(signal.SIGUSR1, self._stop)
        place = _place(self.nodes)
        if place.node:  # the first machine keeps the file
            self._run(place, f".node{place.node}")
            return
        try:
            with doing(self.root, self.state, lambda: last_line(self.log)):
                self._run(place)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None

    @property
    def log(self) -> Path:
        """What the verb says."""
        return self.root / self.state.log

    def checkpoint(self) -> Any:
        """For submitit, before a time limit or a preemption: let the verb save, and come again."""
        from submitit.helpers import DelayedSubmission

        self._stop(signal.SIGUSR1, None)
        if (
            self._child is not None
        ):  # in a signal handler: the wait that it interrupted goes on later
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(
            Task(self.root, self.state, self.words, self.processes, self.nodes)
        )

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1
        if self._child is not None and self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGTERM if self._asked == 1 else signal.SIGKILL)

    def _run(self, place: "_Place", ending: str = "") -> None:
        log = self.log.with_name(self.log.name + ending)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out:
            self._child = subprocess.Popen(
                [
                    *launcher(self.processes, self.nodes, place.head, place.port, place.node),
                    *self.words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # so that all that it starts can be told to stop
            )
            while self._child.poll() is None:
                time.sleep(0.2)
        code, said = self._child.returncode, reason(log)
        if code == 0:
            return
        if self._asked or code in (EXIT_INTERRUPTED, -signal.SIGTERM) or said.startswith(_STOPPED):
            raise KeyboardInterrupt
        killed = f"killed by {signal.Signals(-code).name}; " if code < 0 else ""
        raise UserError(killed + (said or f"exit code {code}, and it said nothing"))


class _Place:
    """Which of a job's machines this is, and where they meet."""

    def __init__(self, node: int = 0, head: str = "", port: int = 0) -> None:
        self.node, self.head, self.port = node, head, port


def _place(nodes: int) -> _Place:
    """This machine's place among the job's; submitit knows."""
    if nodes == 1:
        return _Place()
    import submitit

    here = submitit.JobEnvironment()
    number = int("".join(c for c in here.job_id if c.isdigit()) or 0)
    return _Place(here.node, here.hostnames[0], 20_000 + number % 20_000)


def launcher(
    processes: int, nodes: int = 1, head: str = "", port: int = 0, node: int = 0
) -> list[str]:
    """The words before a verb: Python alone, or torchrun on one machine or several.

    Args:
        processes: per machine.
        nodes: machines.
        head, port: of several, where they meet.
        node: which of them this is; the first is the host.
    """
    if processes <= 1 and nodes == 1:
        return [sys.executable, "-m", "pipeline"]
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={max(1, processes)}"]
    if nodes == 1:
        words.append("--standalone")
    else:
        # static: ranks follow the machines' order, so that process 0 writes the first one's log
        where = (f"--master-addr={head}", f"--master-port={port}")
        words += [f"--nnodes={nodes}", f"--node-rank={node}", *where]
    return [*words, "-m", "pipeline"]


def reason(log: Path) -> str:
    """Why a verb failed: its own last error line, or an exception's, or the last line of the log."""
    lines = _tail(log)
    for line in reversed(lines):
        if line.startswith("siambench: error: "):
            return line.removeprefix("siambench: error: ")
        if line.startswith(_STOPPED):
            return line
    raised = [
        line
        for line in lines
        if ": " in line and line.split(":")[0].endswith(("Error", "Exception"))
    ]
    return (raised or lines or [""])[-1]


def last_line(log: Path) -> str:
    """The last line of a log; ``""`` where there is none."""
    return (_tail(log) or [""])[-1]


def _tail(log: Path, most: int = 8192) -> list[str]:
    """The last lines of a log that are not empty."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - most))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def make_task(root: Path, state: JobState, processes: int, nodes: int) -> Task:
    """The command that does a job, from the configuration file that stands beside its state."""
    path = state_path(root, state.name)
    log = log_name(path, root)
    words = [*state.verb.split(), "--config", str(path.with_suffix(".yaml"))]
    return Task(root.resolve(), replace(state, log=log), words, processes, nodes)


def log_name(state_file: Path, root: Path) -> str:
    """A job's log, relative to the run folder, beside its file."""
    return str(state_file.with_suffix(".log").relative_to(root))


def tasks_folder(root: Path) -> Path:
    """Where submitit keeps its own files."""
    return folder_of(root) / "submitit"
