"""One process at a time in a folder, however the one before ended and wherever it was."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from siambench import alive, hold
from siambench.alive import LOST_AFTER, age, born, repeated
from siambench.errors import UserError
from siambench.hold import Holder, held, holder
from siambench.jobs import JobState, doing, read_states, state_path, write_state


def test_the_second_is_told_who_holds_it(tmp_path):
    path = tmp_path / "run/hold"
    with held(path, tmp_path):
        me = holder(path)
        assert (me.pid, me.born) == (os.getpid(), born(os.getpid()))
        with (
            pytest.raises(
                UserError, match=rf"{tmp_path} is in use by process {me.pid} on {me.host}"
            ),
            held(path, tmp_path),
        ):
            pass
        assert holder(path) == me
    assert holder(path) is None
    with held(path, tmp_path):
        assert [p.name for p in path.parent.iterdir()] == ["hold"]


def test_a_killed_holder_is_followed_at_once(tmp_path):
    path = tmp_path / "hold"
    code = f"from siambench.hold import held; from pathlib import Path; import sys, time\nwith held(Path({str(path)!r}), Path('x')):\n print(1, flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    assert holder(path).pid == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert holder(path) is None
    with held(path, tmp_path):
        assert holder(path).pid == os.getpid()
    process.stdout.close()


def test_a_process_that_has_a_dead_holders_number_is_not_it(tmp_path):
    path = tmp_path / "hold"
    with held(path, tmp_path):
        me = holder(path)
    path.write_text(json.dumps(asdict(replace(me, born=me.born - 1))))
    assert holder(path) is None


def test_another_machines_holder_is_listened_for(tmp_path, monkeypatch):
    path = tmp_path / "hold"
    other = Holder(
        "elsewhere", 1, "another boot", 5, "2026-01-01T00:00:00+00:00", "siambench run x"
    )
    path.write_text(json.dumps(asdict(other)))
    assert holder(path) == other
    monkeypatch.setattr(hold, "_SILENT", 0.3)
    monkeypatch.setattr(hold, "BEAT", 0.1)
    monkeypatch.setattr(alive, "BEAT", 0.05)
    with (
        repeated(lambda: os.utime(path)),  # it lives
        pytest.raises(UserError, match="in use by process 1 on elsewhere"),
        held(path, tmp_path),
    ):
        pass
    with held(path, tmp_path):  # silent for a while: dead
        assert holder(path).pid == os.getpid()
    path.write_text(json.dumps(asdict(other)))
    os.utime(path, (0, time.time() - LOST_AFTER - 5))
    assert holder(path) is None
    assert age(path) > LOST_AFTER


def _race(path, folder, turns, trace):
    for _ in range(turns):
        while True:
            try:
                with held(path, folder):
                    with open(trace, "a") as log:
                        log.write(f"in {os.getpid()}\n")
                    with open(trace, "a") as log:
                        log.write(f"out {os.getpid()}\n")
                break
            except UserError:
                continue


def test_of_many_one_at_a_time(tmp_path):
    """Four processes, each holding a hundred times; nobody comes in before the one before is out."""
    trace = tmp_path / "trace"
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "hold", tmp_path, 100, trace)
    racers = [context.Process(target=_race, args=arguments) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    lines = trace.read_text().splitlines()
    assert len(lines) == 800
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.split()[0] == "in"
        assert left == entered.replace("in", "out")


def test_a_job_says_how_it_stands_and_how_it_ended(tmp_path):
    state = JobState("knn in1k-knn a/b", verb="knn", benchmark="in1k-knn", backbone="a/b")
    write_state(tmp_path, state)
    assert read_states(tmp_path) == [state]
    with doing(tmp_path, state, lambda: "knn: 3/7"):
        (now,) = read_states(tmp_path)
        assert (now.state, now.progress, now.pid) == ("running", "knn: 3/7", os.getpid())
        live = state_path(tmp_path, state.name).with_suffix(".live")
        body = json.loads(state_path(tmp_path, state.name).read_text())
        gone = {**body, "pid": 2**22 + 1}  # above the most a Linux pid can be
        state_path(tmp_path, state.name).write_text(json.dumps(gone))
        assert read_states(tmp_path)[0].state == "lost"
        elsewhere = {**gone, "host": "elsewhere"}
        state_path(tmp_path, state.name).write_text(json.dumps(elsewhere))
        assert read_states(tmp_path)[0].state == "running"
        os.utime(live, (0, time.time() - LOST_AFTER - 5))
        assert read_states(tmp_path)[0].state == "lost"
    assert read_states(tmp_path)[0].state == "done"
    assert not live.exists()
    for error, ended, reason in (
        (UserError("bad\ndata"), "failed", "bad data"),
        (ValueError("a bug"), "failed", "ValueError: a bug"),
        (KeyboardInterrupt(), "interrupted", ""),
    ):
        with pytest.raises(type(error)), doing(tmp_path, state, lambda: ""):
            raise error
        (now,) = read_states(tmp_path)
        assert (now.state, now.reason) == (ended, reason)
    (tmp_path / "run/other.json").write_text('{"name": 3}')
    (tmp_path / "run/broken.json").write_text("{")
    assert [s.name for s in read_states(tmp_path)] == [state.name]
