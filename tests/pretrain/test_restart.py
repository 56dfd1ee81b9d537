"""Killed at any moment, damaged, asked to stop: the run ends in the same weights, or says why not."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import (
    begin,
    begin_all,
    end,
    identical,
    killed_while_it_waits,
    lines,
    slow_to_save,
    weights,
)

from pretrain.checkpoint import check_seal, checkpoints
from pretrain.loop import run
from pretrain.watch import Watch
from siambench.errors import UserError
from siambench.signals import stop_requests

KILLS = 22


@pytest.fixture
def config(config):
    augment = replace(config.augment, noise=0.05)
    return replace(config, augment=augment, log_every=3, checkpoint_every=2)


def test_killed_at_random_moments_the_run_ends_bit_for_bit_the_same(config, tmp_path):
    config = replace(config, epochs=12, knn_every=5)
    whole = replace(config, out=str(tmp_path / "whole"))
    begin(replace(config, out=str(tmp_path / "warm")), tmp_path / "warm.log").join()
    start = time.monotonic()
    assert end(begin(whole, tmp_path / "whole.log")) == 0
    length = time.monotonic() - start
    killed = replace(config, out=str(tmp_path / "killed"), workers=1)
    last = "checkpoint_0012.pth"

    def check():
        assert identical(tmp_path / "whole" / last, tmp_path / "killed" / last)
        for name in ("monitor.jsonl", "steps.jsonl"):
            assert lines(whole.out, name) == lines(killed.out, name)

    moments = random.Random(0)
    kills = 0
    while kills < KILLS:
        code = end(begin(killed, tmp_path / "killed.log"), after=moments.uniform(0, length))
        if code == 0:  # it was done before: check, and once more from the start
            check()
            shutil.rmtree(killed.out)
        else:
            assert code == -signal.SIGKILL
            kills += 1
    assert end(begin(replace(killed, workers=0), tmp_path / "killed.log")) == 0
    check()
    assert (tmp_path / "killed.log").read_text().count("resuming") > KILLS // 3
    assert not list(Path(killed.out).glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_asked_to_stop_it_saves_at_the_next_step(config, tmp_path, number, workers):
    """Where there are loader processes, they are signalled too."""
    config = replace(config, epochs=12, checkpoint_every=10_000, knn_every=0, workers=workers)
    whole = run(replace(config, out=str(tmp_path / "whole")))
    log = tmp_path / "log"
    process = begin(config, log)
    monitor = tmp_path / "run/steps.jsonl"
    while process.is_alive() and not (monitor.exists() and monitor.read_text()):
        process.join(0.01)
    assert end(process, after=0, number=number, group=True) == 130
    assert (tmp_path / "run/interrupted").exists()
    said = log.read_text()
    newest = checkpoints(tmp_path / "run")[0]
    assert f"{number.name}: step " in said
    assert f"is saved in {newest}" in said
    assert newest.name != "checkpoint_0012.pth"
    assert identical(run(replace(config, workers=0)), whole)
    assert not (tmp_path / "run/interrupted").exists()


def test_a_checkpoint_with_one_bit_flipped_or_cut_short_is_recognised(config, tmp_path, capsys):
    expected = weights(run(config))
    newest, before = checkpoints(tmp_path / "run")
    good = newest.read_bytes()
    rng = np.random.default_rng(0)
    bits = 8 * len(good)
    ends = [0, 8 * 4, bits - 1, bits - 8 * 40, bits - 8 * 82]
    for bit in [*ends, *(int(b) for b in rng.integers(0, bits, 60))]:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(bad)
        with pytest.raises(ValueError, match="checksum"):
            check_seal(newest)
    newest.write_bytes(bad)
    assert run(config) == newest
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said
    assert "trying the one before" in said
    assert all(torch.equal(v, expected[k]) for k, v in weights(newest).items())
    for size in (0, 10, len(good) // 2, len(good) - 1):
        newest.write_bytes(good[:size])
        with pytest.raises(ValueError, match=r"checksum|short"):
            check_seal(newest)
    newest.write_bytes(good[:-1])
    run(config)
    assert f"{newest} is damaged" in capsys.readouterr().err
    assert before.exists()
    for path in checkpoints(tmp_path / "run"):
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        run(config)


def test_the_last_two_checkpoints_are_kept_within_an_epoch_too(config, tmp_path, monkeypatch):
    import pretrain.run

    seen = []
    save = pretrain.run.save_checkpoint

    def noted(*arguments):
        path = save(*arguments)
        seen.append([p.name for p in checkpoints(path.parent)])
        return path

    monkeypatch.setattr(pretrain.run, "save_checkpoint", noted)
    run(replace(config, epochs=2))
    assert seen == [
        ["checkpoint_0000_000002.pth"],
        ["checkpoint_0000_000004.pth", "checkpoint_0000_000002.pth"],
        ["checkpoint_0001.pth", "checkpoint_0000_000004.pth"],
        ["checkpoint_0001_000001.pth", "checkpoint_0001.pth"],
        ["checkpoint_0001_000003.pth", "checkpoint_0001_000001.pth"],
        ["checkpoint_0002.pth", "checkpoint_0001_000003.pth"],
    ]


def test_lines_after_the_checkpoint_are_taken_back(config, tmp_path):
    run(config)
    expected = {name: lines(config.out, name) for name in ("monitor.jsonl", "steps.jsonl")}
    newest, _ = checkpoints(tmp_path / "run")
    newest.unlink()  # back to step 18: the lines of steps 18 and 20 are ahead of it
    with open(tmp_path / "run/steps.jsonl", "a") as handle:
        handle.write('{"epoch": 4, "st')
    (tmp_path / "run/monitor.jsonl").unlink()
    run(config)
    assert {name: lines(config.out, name) for name in expected} == expected
    assert [x["step"] for x in expected["steps.jsonl"]] == [3, 5, 6, 9, 10, 12, 15, 18, 20]


def test_killed_between_checkpoint_and_monitor_the_lines_are_whole(config, tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        write = Watch.write_history
        patch.setattr(
            Watch, "write_history", lambda w: (len(w.history) == 4 and killed(w)) or write(w)
        )
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert len(lines(config.out, "monitor.jsonl")) == 3
    run(config)
    assert [x["epoch"] for x in lines(config.out, "monitor.jsonl")] == [1, 2, 3, 4]


def test_a_folder_has_one_run_at_a_time_and_no_leftovers(config, tmp_path):
    held_by = begin(replace(config, epochs=2000), tmp_path / "log")
    while held_by.is_alive() and not checkpoints(tmp_path / "run"):
        held_by.join(0.01)
    with pytest.raises(UserError, match=rf"{config.out} is in use by process {held_by.pid} on "):
        run(config)
    assert end(held_by, after=0) == -signal.SIGKILL
    for path in checkpoints(tmp_path / "run"):
        path.unlink()
    (tmp_path / "run/.checkpoint_0000_000002.pth.elsewhere-5.tmp").touch()
    run(config)
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(config, monkeypatch):
    run(config)

    def failing(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pretrain.checkpoint.check_seal", failing)
    with pytest.raises(UserError, match=r"checkpoint_0004.pth cannot be read: Input/output error"):
        run(config)


def test_a_fault_in_saving_is_not_called_a_full_disk(config, monkeypatch):
    def faulty(state, path):
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal")

    monkeypatch.setattr(torch, "save", faulty)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        run(config)


def test_a_full_disk_is_named_and_costs_nothing_saved(config, tmp_path, monkeypatch):
    whole = run(replace(config, out=str(tmp_path / "whole")))
    real, count = torch.save, iter(range(100))

    def full(state, path):
        if next(count) == 5:
            Path(path).write_bytes(b"half of it")
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*checkpoint_0002.pth: .*disk full"):
        run(config)
    kept = checkpoints(tmp_path / "run")
    assert [p.name for p in kept] == ["checkpoint_0001_000003.pth", "checkpoint_0001_000001.pth"]
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert identical(run(config), whole)


def test_a_process_that_dies_ends_the_others_and_the_rest_is_resumed(config, tmp_path):
    config = replace(config, epochs=200, knn_every=0)
    processes = begin_all(config, tmp_path, 2)
    while all(p.is_alive() for p in processes) and not checkpoints(tmp_path / "run"):
        processes[0].join(0.01)
    assert end(processes[1], after=0) == -signal.SIGKILL
    assert end(processes[0]) == 2
    assert "process 0 of 2 lost another one" in (tmp_path / "0.log").read_text()
    assert checkpoints(tmp_path / "run")
    done = int(checkpoints(tmp_path / "run")[0].stem[11:15])
    assert done < 200
    processes = begin_all(config, tmp_path, 2)
    while "resuming" not in (tmp_path / "0.log").read_text() and processes[0].is_alive():
        processes[0].join(0.01)
    assert end(processes[1], after=0.3, number=signal.SIGTERM) == 130  # one is asked, both save
    assert end(processes[0]) == 130
    assert "another process was asked to stop: step" in (tmp_path / "0.log").read_text()
    alone, before = begin(config, tmp_path / "alone.log"), checkpoints(tmp_path / "run")[0]
    while alone.is_alive() and checkpoints(tmp_path / "run")[0] == before:
        alone.join(0.01)
    assert end(alone, after=0, number=signal.SIGTERM) == 130  # one process goes on where two were
    assert f"resuming {config.out} after epoch" in (tmp_path / "alone.log").read_text()


def test_the_last_accuracy_of_several_processes_comes_after_a_kill(config, tmp_path):
    """As beside a GPU: process 0 is killed while it waits for the monitor; then all go on."""
    processes = begin_all(config, tmp_path, 2, work=killed_while_it_waits)
    assert [end(p) for p in processes] == [-signal.SIGKILL, 0]
    assert [x["knn_top1"] for x in lines(config.out, "monitor.jsonl")][-1] is None
    assert [end(p) for p in begin_all(config, tmp_path, 2)] == [0, 0]
    assert [x["knn_top1"] for x in lines(config.out, "monitor.jsonl")][-1] is not None


def test_processes_whose_torchrun_is_gone_stop(monkeypatch):
    for launcher, expected in (("TORCHELASTIC_RUN_ID", True), ("NOT_TORCHRUN", False)):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        monkeypatch.setenv(launcher, "1")
        with stop_requests() as asked, monkeypatch.context() as patch:
            assert not asked
            patch.setattr("os.getppid", lambda: 1)  # as for any orphan
            assert bool(asked) is expected


def test_all_processes_wait_until_the_state_is_saved(config, tmp_path):
    """torchrun ends all processes when one has ended: none may, before the first has written."""
    processes = begin_all(replace(config, knn_every=0), tmp_path, 2, work=slow_to_save)
    processes[1].join(0.01)
    while processes[1].is_alive() and not (tmp_path / "run/saving").exists():
        processes[1].join(0.01)
    assert processes[1].is_alive()
    assert [end(p) for p in processes] == [130, 130]
    assert checkpoints(tmp_path / "run")


def test_torchrun_does_what_the_processes_here_do(config, tmp_path):
    flags = f"""
        --data {config.data} --out {tmp_path}/torchrun --arch {config.arch} --device cpu --workers 1
        --epochs 4 --batch-size 20 --dim 16 --pred-dim 4 --knn-every 2 --knn-images 40
        --augment.crop 24 --augment.resize 24 --augment.recolour 0.5 --augment.rotate 5
        --augment.noise 0.05 --json
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, "pretrain", *flags.split()], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == str(tmp_path / "torchrun/checkpoint_0004.pth")  # said once
    assert [end(p) for p in begin_all(config, tmp_path, 2)] == [0, 0]
    last = "checkpoint_0004.pth"
    assert identical(tmp_path / "torchrun" / last, tmp_path / "run" / last)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, RANK or LOCAL_RANK is not; start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "process 0 of 2 cannot join: "),
    ],
)
def test_an_environment_that_is_not_torchruns(config, monkeypatch, environment, said):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        run(config)


def test_an_image_lost_during_training_is_named_by_every_way_of_loading(config, scenes, tmp_path):
    for workers in (0, 1):
        data = shutil.copytree(scenes / "imagenet", tmp_path / f"data{workers}")
        torn = sorted((data / "train/six").iterdir())[2]
        whole = torn.read_bytes()
        torn.write_bytes(b"lost" + whole[100:])  # its end mark is in place
        lost = replace(config, data=str(data), out=str(tmp_path / f"out{workers}"))
        with pytest.raises(UserError, match=rf"^image {torn} cannot be decoded \([^\n]*$"):
            run(replace(lost, workers=workers, knn_every=0))
    processes = begin_all(replace(lost, knn_every=0), tmp_path, 2)
    assert [end(p) for p in processes] == [2, 2]
    said = [(tmp_path / f"{rank}.log").read_text() for rank in range(2)]
    assert sum(f"image {torn} cannot be decoded" in text for text in said) == 1
    assert sum("lost another one" in text for text in said) == 1


def test_bad_input_stops_all_processes_and_only_the_first_speaks(config, tmp_path):
    processes = begin_all(replace(config, data="nowhere"), tmp_path, 2)
    assert [end(p) for p in processes] == [2, 2]
    assert "image folder: nowhere/train does not exist" in (tmp_path / "0.log").read_text()
    assert (tmp_path / "1.log").read_text() == ""
    with pytest.raises(
        UserError, match=r"--batch_size 20 does not divide by .*nearest .* is 18 or 21"
    ):
        run(replace(config, accumulate=3))
