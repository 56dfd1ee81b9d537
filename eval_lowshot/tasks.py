"""Thousands of small problems: in parallel, with progress, each result kept as soon as it is there."""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from siambench.files import write_text
from siambench.progress import bar

Key = tuple[str | int, ...]
Result = dict[str, Any]  # plain numbers and lists: it goes through JSON
Task = tuple[Callable[..., Result], tuple[Any, ...]]


def run_tasks(tasks: dict[Key, Task], kept: Path, title: str, processes: int) -> dict[Key, Result]:
    """Run every task that has no result yet.

    Processes, not threads: liblinear's random numbers are global to a process. One BLAS thread
    each, whatever the machine has. Large arrays among the arguments are shared, not copied.

    Args:
        tasks: key to (function, arguments); the functions must be importable and deterministic.
        kept: file of finished results, one JSON line each; made when absent. A line cut off by a
            kill is dropped.
        title: of the progress bar.
        processes: how many at once; 1 works in this process.

    Returns:
        Key to result, in the order of ``tasks``.
    """
    done = {key: result for key, result in read_results(kept).items() if key in tasks}
    write_text(kept, "".join(_line(key, result) for key, result in done.items()))
    left = [(key, *task) for key, task in tasks.items() if key not in done]
    processes = min(processes, len(left)) or 1
    with (
        bar(title, len(tasks), len(done)) as progress,
        open(kept, "a", encoding="utf-8") as handle,
        threadpool_limits(1),
        parallel_config("loky", inner_max_num_threads=1),
    ):
        parallel = Parallel(n_jobs=processes, return_as="generator_unordered")
        for key, result in parallel(delayed(_run)(os.getpid(), *task) for task in left):
            done[key] = result
            handle.write(_line(key, result))
            handle.flush()
            os.fsync(handle.fileno())
            progress.advance()
    return {key: done[key] for key in tasks}


def read_results(kept: Path) -> dict[Key, Result]:
    """The whole lines of a file that :func:`run_tasks` wrote; nothing when it is not there."""
    found: dict[Key, Result] = {}
    if kept.is_file():
        for line in kept.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                found[tuple(row["task"])] = row["result"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return found


def _run(parent: int, key: Key, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Any:
    if os.getpid() != parent:
        _end_with(parent)
    return key, function(*arguments)


@cache
def _end_with(parent: int) -> None:
    """Let this worker end within a second when the process that started it has been killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _line(key: Key, result: Result) -> str:
    return json.dumps({"task": list(key), "result": result}) + "\n"
