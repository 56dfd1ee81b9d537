"""Blocks of SVMs: in parallel, with progress, each result kept as soon as it is there."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from eval_lowshot.config import SvmConfig
from siambench.device import cores
from siambench.evaluation import Job
from siambench.files import write_text
from siambench.progress import bar

Key = tuple[str | int, ...]
Result = dict[str, Any]  # plain numbers and lists: it goes through JSON


class Task(NamedTuple):
    """What to call, and how many SVMs that trains."""

    function: Callable[..., Result]
    arguments: tuple[Any, ...]
    size: int


@contextmanager
def one_thread() -> Iterator[None]:
    """A thread of one's own is all that BLAS and torch may use: more fight over the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def workers(config: SvmConfig, job: Job) -> tuple[int, bool]:
    """How many tasks at once, and whether in threads: one a core; beside a GPU one, which fills it."""
    threads = config.solver == "batched"
    if threads and job.device.type != "cpu":
        return 1, True
    return cores() if config.workers < 0 else max(config.workers, 1), threads


def run_tasks(
    tasks: dict[Key, Task], kept: Path, title: str, workers: int, threads: bool
) -> dict[Key, Result]:
    """Run every task that has no result yet, each on one core.

    Args:
        tasks: by key; the functions must be deterministic and, for processes, importable.
        kept: file of finished results, one JSON line each; made when absent. A line cut off by a
            kill is dropped.
        title: of the progress bar, which counts SVMs.
        workers: how many tasks at once; 1 works in this thread.
        threads: in threads, which share everything; else in processes, as liblinear needs, whose
            random numbers are global to one. Large arrays are shared then too.

    Returns:
        Key to result, in the order of ``tasks``.
    """
    done = {key: result for key, result in read_results(kept).items() if key in tasks}
    write_text(kept, "".join(_line(key, result) for key, result in done.items()))
    left = [(key, task) for key, task in tasks.items() if key not in done]
    workers = min(workers, len(left)) or 1
    sizes = {key: task.size for key, task in tasks.items()}
    with (
        bar(title, sum(sizes.values()), sum(sizes[key] for key in done)) as progress,
        open(kept, "a", encoding="utf-8") as handle,
        one_thread(),
        parallel_config("threading" if threads else "loky", **_inner(threads)),
    ):
        parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
        for key, result in parallel(delayed(_run)(os.getpid(), *task) for task in left):
            done[key] = result
            handle.write(_line(key, result))
            handle.flush()
            os.fsync(handle.fileno())
            progress.advance(sizes[key])
    return {key: done[key] for key in tasks}


def _inner(threads: bool) -> dict[str, int]:
    return {} if threads else {"inner_max_num_threads": 1}


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


def _run(parent: int, key: Key, task: Task) -> Any:
    if os.getpid() != parent:
        _end_with(parent)
    return key, task.function(*task.arguments)


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
