"""Kills and workers: nothing is done twice, and the numbers are those of an undisturbed run."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from small_voc import make_small_voc

from eval_lowshot import full, lowshot, tasks
from eval_lowshot.config import SvmConfig
from eval_lowshot.evaluate import run

LOW = {"mode": "lowshot", "k": [1, 3], "samples": 2, "negatives_per_positive": 3}
NAMES = ["backbone", "data", "out", "costs", "resize", "size", "workers", "solver", "mode"]


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_small_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def config(voc, backbone_file, tmp_path):
    def make(out="run", **fields):
        values = {"data": str(voc), "backbone": str(backbone_file), "out": str(tmp_path / out)}
        quick = {"costs": [0.1, 1.0], "resize": 0, "size": 32, "workers": 0}
        return SvmConfig(**{**values, **quick, **fields})

    return make


def plain(record):
    return [(m.name, m.value, m.params) for m in record.metrics]


@pytest.mark.parametrize("fields", [{}, LOW], ids=["full", "lowshot"])
@pytest.mark.parametrize("solver", ["batched", "liblinear"])
def test_workers_give_the_same_numbers(config, solver, fields, monkeypatch):
    monkeypatch.setattr(full, "_BLOCK", 2)
    alone, one, two = (
        run(config(f"workers-{workers}", solver=solver, workers=workers, **fields))[0]
        for workers in (0, 1, 2)
    )
    assert plain(alone) == plain(one) == plain(two)


# tasks; SVMs that they train: a class 2 costs x 3 folds and the last; a sample 3 classes x 2 costs x
# one, and three folds if k is 3
@pytest.mark.parametrize(
    ("solver", "fields", "function", "sizes"),
    [
        ("liblinear", {}, (full, "full_block"), [7, 7, 7]),
        ("batched", LOW, (lowshot, "lowshot_sample"), [24, 24, 6, 6]),
    ],
)
def test_killed_and_started_again(config, monkeypatch, solver, fields, function, sizes):
    """SIGKILL after two results: both are kept, with a line cut off after them, and not made again."""
    monkeypatch.setattr(full, "_BLOCK", 1)
    (wanted,) = run(config("uninterrupted", solver=solver, **fields))
    asked = config(solver=solver, **fields)
    killer = (
        "import itertools, os, signal, sys\n"
        "from eval_lowshot import VERBS, full, tasks\n"
        "from siambench.cli import run_verb\n"
        "full._BLOCK = 1\n"
        "calls, line = itertools.count(), tasks._line\n"
        "def deadly(key, result):\n"
        "    if next(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return line(key, result)\n"
        "tasks._line = deadly\n"
        "run_verb(VERBS['svm'], sys.argv[1:])\n"
    )
    arguments = [f"--{name}={getattr(asked, name)}" for name in [*NAMES, *fields]]
    done = subprocess.run([sys.executable, "-c", killer, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (kept,) = Path(asked.out).glob("jobs/svm-*/avgpool.jsonl")
    before = kept.read_text()
    assert len(before.splitlines()) == 2
    with open(kept, "a") as handle:
        handle.write('{"task": ["avgpool", 3, 0], "resul')

    calls = Mock(wraps=getattr(*function))
    monkeypatch.setattr(*function, calls)
    bar = Mock(wraps=tasks.bar)
    monkeypatch.setattr(tasks, "bar", bar)
    (resumed,) = run(asked)
    assert calls.call_count == len(sizes) - 2
    assert bar.call_args.args[1:] == (sum(sizes), sum(sizes[:2]))
    assert plain(resumed) == plain(wanted)
    assert kept.read_text().startswith(before)
    assert len(kept.read_text().splitlines()) == len(sizes)
    run(asked)
    assert calls.call_count == len(sizes) - 2  # the record stands


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    """The worker kills its parent and waits for ever; the pipe it holds closes when it ends."""
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "def work(parent, pipe):\n"
        "    os.open(pipe, os.O_WRONLY)\n"
        "    os.kill(parent, signal.SIGKILL)\n"
        "    while True: signal.pause()\n"
    )
    script = (
        "import os, sys, time; from pathlib import Path; import deadly\n"
        "from eval_lowshot.tasks import Task, run_tasks\n"
        "folder = Path(sys.argv[1])\n"
        "tasks = {('kill',): Task(deadly.work, (os.getpid(), str(folder / 'pipe')), 1)}\n"
        "tasks |= {('wait', n): Task(time.sleep, (99,), 1) for n in range(3)}\n"
        "run_tasks(tasks, folder / 'kept', 'deadly', 2, threads=False)\n"
    )
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    parent = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    assert parent.returncode == -signal.SIGKILL
    ready, _, _ = select.select([pipe], [], [], 30)
    assert ready
    assert os.read(pipe, 1) == b""
    os.close(pipe)
