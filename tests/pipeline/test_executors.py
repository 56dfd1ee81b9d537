"""Jobs in processes of their own: several at once here, and on a Slurm that this test plays."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_slurm import ends, install, option, scripts, start, work

from siambench.jobs import read_states
from siambench.record import read_record

pytestmark = pytest.mark.slow

RUN = """
name: apart
executor: {executor}
backbones:
  small: {{pretrain: {{preset: digits-simsiam, arch: resnet10-w8, epochs: {epochs}, batch_size: 20, dim: 16,
    pred_dim: 8, checkpoint_every: 1000, augment: {{crop: 24, resize: 24}}, knn_every: 0}}}}
  random: {{checkpoint: "random:resnet10-w8"}}
benchmarks:
  - {{verb: knn, data: imagenet, k: [5], temperature: [0.07], resize: 24, crop: 24}}
  - {{verb: svm, preset: voc07-lowshot, data: VOCdevkit, costs: [1.0], k: [1], samples: 1, resize: 0,
     size: 32, trials: 2, backbones: [random]}}
"""


def run_file(tmp_path: Path, scenes: Path, executor: str, epochs: int = 2) -> list[str]:
    """The command of a small run."""
    path = tmp_path / "apart.yaml"
    path.write_text(RUN.format(executor=executor, epochs=epochs))
    words = ["run", str(path), "--root", str(tmp_path / "root"), "--data", str(scenes)]
    return [sys.executable, "-m", "pipeline", *words, "--workers", "0"]


def name_of(record: Path) -> str:
    """Its name; without the digest where that is of a checkpoint, which holds its own seconds."""
    return "knn small" if record.name.startswith("knn-small-") else record.name


def states(tmp_path: Path) -> dict[str, str]:
    return {s.name: s.state for s in read_states(tmp_path / "root")}


JOBS = [
    "convert random",
    "convert small",
    "knn random",
    "knn small",
    "pretrain small",
    "svm voc07-lowshot random #0",
    "svm voc07-lowshot random #1",
]


def test_local_jobs_do_what_this_process_would(scenes, tmp_path):
    (tmp_path / "here").mkdir()
    alone = run_file(tmp_path / "here", scenes, "here")
    done = subprocess.run(alone, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    command = run_file(tmp_path, scenes, "{kind: local, gpus: 0, at_once: 2}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'root'}/report.md"
    assert states(tmp_path) == dict.fromkeys(JOBS, "done")
    mine, theirs = (
        {name_of(p): p for p in (root / "records").glob("*.json")}
        for root in (tmp_path / "here/root", tmp_path / "root")
    )
    assert len(mine) == 4
    assert set(mine) == set(theirs)
    for name, path in mine.items():
        assert read_record(path).metrics == read_record(theirs[name]).metrics
    log = tmp_path / "root/run/knn.random.log"
    assert "record    " in log.read_text()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0
    assert "started" not in again.stderr


def test_a_local_job_that_fails_says_why_and_the_others_go_on(scenes, tmp_path):
    command = run_file(tmp_path, scenes, "{kind: local, gpus: 0, at_once: 2}")
    path = tmp_path / "apart.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 2, base_lr: 1e30"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    ended = states(tmp_path)
    assert ended["pretrain small"] == "failed"
    assert ended["convert small"] == ended["knn small"] == "waiting"
    assert ended["knn random"] == "done"
    failed = next(s for s in read_states(tmp_path / "root") if s.name == "pretrain small")
    assert "the loss is nan at step 2" in failed.reason
    assert f"FAILED pretrain small: {failed.reason}" in done.stdout
    assert "not tried: knn small (needs convert small)" in done.stdout
    retry = next(x for x in done.stdout.splitlines() if x.startswith("  alone: "))
    words = retry.removeprefix("  alone: siambench ").split()
    alone = subprocess.run(
        [sys.executable, "-m", "pipeline", *words, "--base_lr", "0.1"],
        capture_output=True,
        timeout=300,
    )
    assert alone.returncode == 0  # the command is whole: with another rate it works


def test_what_a_killed_run_left_at_work_is_waited_for(scenes, tmp_path):
    command = run_file(tmp_path, scenes, "{kind: local, gpus: 0, at_once: 2}")
    root = tmp_path / "root"
    code = f"""
from pathlib import Path
from pipeline.config import RunConfig
from pipeline.jobs import lay_out
from pipeline.verbs import VERBS
from siambench.jobs import JobState, doing
run = lay_out(RunConfig({command[4]!r}, root={command[6]!r}, data={command[8]!r}))
job = next(job for job in run.jobs if job.name == "convert random")
with doing(run.root, JobState(job.name, verb=job.verb), lambda: ""):
    print("at work", flush=True)
    input()
    VERBS["convert"](job.config)
"""
    (root / "run").mkdir(parents=True)
    left = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert left.stdout.readline() == "at work\n"
    again = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = ""
    while "still at work: convert random" not in said:
        line = again.stderr.readline()
        assert line, said
        said += line
    left.communicate("\n")
    _, rest = again.communicate(timeout=600)
    assert again.returncode == 0, said + rest
    assert "started: convert random" not in said + rest
    assert states(tmp_path) == dict.fromkeys(JOBS, "done")


@pytest.mark.parametrize("executor", ["here", "{kind: local, gpus: 0, at_once: 2}"])
def test_ctrl_c_lets_jobs_save_and_the_same_command_goes_on(scenes, tmp_path, executor):
    command = run_file(tmp_path, scenes, executor, epochs=2000)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    steps = tmp_path / "root/pretrain/small/steps.jsonl"
    wait_for(lambda: steps.exists() and steps.read_text(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    said = process.stderr.read()
    assert "goes on from" in said
    assert "Traceback" not in said
    assert states(tmp_path)["pretrain small"] == "interrupted"
    assert (tmp_path / "root/pretrain/small/interrupted").exists()
    done = len(steps.read_text().splitlines())
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(steps.read_text().splitlines()) > done, again)
    again.send_signal(signal.SIGINT)
    assert again.wait(120) == 130
    numbers = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert numbers == sorted(set(numbers))  # it went on and did not start anew


def wait_for(met, process: subprocess.Popen) -> None:
    """Until ``met()``, while the process lives."""
    while not met():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    env = install(tmp_path / "slurm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm", env


SLURM = (
    "{kind: slurm, partition: big, account: lab, gpus: 1, cpus: 4, hours: 2, memory_gb: 16, at_once: 3,"
    " grace_seconds: 60, setup: [export GREETING=hello], extra: {mail-type: FAIL},"
    " verbs: {pretrain: {nodes: 2, hours: 48}}}"
)


def test_slurm_gets_arrays_behind_what_they_need_and_does_them(scenes, tmp_path, cluster):
    folder, env = cluster
    command = run_file(tmp_path, scenes, SLURM)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "8 jobs with Slurm; watch them: siambench status" in done.stdout
    pretrain, random, convert, evaluations, knn, report = scripts(folder).values()
    assert [option(pretrain, x) for x in ("nodes", "time", "gpus-per-node")] == ["2", "2880", "1"]
    assert option(random, "gpus-per-node") == ""
    assert option(convert, "dependency") == "afterok:101"
    assert option(evaluations, "dependency") == "afterok:102"
    assert option(evaluations, "array") == "0-2%3"
    assert option(knn, "dependency") == "afterok:103"
    condition, *every = option(report, "dependency").split(":")
    assert condition == "afterany"
    assert sorted(every) == ["101", "102", "103", "104_0", "104_1", "104_2", "105"]
    for script in (pretrain, evaluations):
        wanted = {
            "partition": "big",
            "account": "lab",
            "cpus-per-task": "4",
            "mem": "16GB",
            "signal": "USR2@60",
            "mail-type": "FAIL",
            "kill-on-invalid-dep": "yes",
            "ntasks-per-node": "1",
        }
        assert {name: option(script, name) for name in wanted} == wanted
        assert re.search("^#SBATCH --requeue$", script, re.M)
        assert "\nexport GREETING=hello\n" in script
    assert set(states(tmp_path).values()) == {"queued"}
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert again.stderr.count("with Slurm already") == 7
    assert set(work(folder, env).values()) == {"done"}
    assert states(tmp_path) == dict.fromkeys([*JOBS, "report"], "done")
    assert len(list((tmp_path / "root/records").glob("*.json"))) == 4
    assert (tmp_path / "root/report.md").exists()
    log = (tmp_path / "root/run/pretrain.small.log").read_text()
    assert "2 epochs" in log
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"report: {tmp_path / 'root'}/report.md\n"
    assert len(scripts(folder)) == 6


def test_a_preempted_slurm_job_saves_is_requeued_and_goes_on(scenes, tmp_path, cluster):
    folder, env = cluster
    command = run_file(tmp_path, scenes, "slurm", epochs=40)
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    process = start(folder, "101", "101", env)
    steps = tmp_path / "root/pretrain/small/steps.jsonl"
    wait_for(lambda: steps.exists() and steps.read_text(), process)
    task = next(s for s in read_states(tmp_path / "root") if s.name == "pretrain small")
    assert task.state == "running"
    os.kill(task.pid, signal.SIGUSR2)  # what Slurm sends before it takes the machine away
    assert process.wait(120) != 0
    assert (folder / "requeued").read_text() == "101"
    assert states(tmp_path)["pretrain small"] == "interrupted"
    assert (tmp_path / "root/pretrain/small/interrupted").exists()
    assert "101" not in ends(folder)
    assert start(folder, "101", "101", env).wait(300) == 0
    assert states(tmp_path)["pretrain small"] == "done"
    assert "resuming" in (tmp_path / "root/run/pretrain.small.log").read_text()
    last = tmp_path / "root/pretrain/small/checkpoint_0040.pth"
    assert torch.load(last, weights_only=False)["epoch"] == 40


def test_what_waits_for_a_failed_slurm_job_is_not_done(scenes, tmp_path, cluster):
    folder, env = cluster
    command = run_file(tmp_path, scenes, "slurm")
    path = tmp_path / "apart.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 2, base_lr: 1e30"))
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    ended = work(folder, env)
    assert ended["101"] == "failed"
    assert sorted(ended.values()).count("cancelled") == 2
    assert ended[max(ended)] == "done"  # the report
    failed = next(s for s in read_states(tmp_path / "root") if s.name == "pretrain small")
    assert "the loss is nan at step 2" in failed.reason
    command = [sys.executable, "-m", "pipeline", "status", str(tmp_path / "root")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert said.returncode == 2
    (line,) = [x for x in said.stdout.splitlines() if "knn small" in x]
    assert "no longer with Slurm; `siambench run` submits it again" in line
    assert json.loads((folder / "ends.json").read_text()) == ended


def test_without_slurm_it_says_where_to_start(scenes, tmp_path):
    command = run_file(tmp_path, scenes, "slurm")
    env = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 2
    assert "start this on a machine of the Slurm cluster" in done.stderr
