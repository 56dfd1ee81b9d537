"""Runs in processes of their own that have torch loaded when they start, so that many are cheap."""

import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import torch

import pretrain.loop
import pretrain.run
from pretrain.loop import run, train
from pretrain.monitors import KnnMonitor
from pretrain.run import lay_out, open_data
from siambench.distributed import join
from siambench.errors import UserError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "pretrain.loop", "siambench.knn"])
CLOCKS = {"seconds", "images_per_second", "data_wait"}  # what differs between two equal runs


def in_double(config):
    """A whole run in float64: rounding stays too small for training to amplify it."""
    with join(config.device) as world:
        Path(config.out).mkdir(exist_ok=True)
        laid_out = lay_out(config, world, open_data(config))
        laid_out.method.double()
        laid_out.batches = (([v.double() for v in vs], *y) for vs, *y in laid_out.batches)
        laid_out.watch.open(0)
        train(laid_out)


def killed_while_it_waits(config):
    """A run with the monitor in the background, killed at its end while the monitor works."""
    pretrain.run.KnnMonitor = functools.partial(KnnMonitor, background=True)
    KnnMonitor.wait = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    KnnMonitor.finished = lambda self: {}
    run(config)


def slow_to_save(config):
    """A run that is asked to stop in its second process, and whose first takes a while to save."""
    save = pretrain.run.save_checkpoint

    def slow(out, *rest):
        (out / "saving").touch()
        threading.Event().wait(2)
        return save(out, *rest)

    pretrain.run.save_checkpoint = slow
    if os.environ["RANK"] == "1":
        train_one = pretrain.loop.gradients

        def asked(laid_out, model):
            os.kill(os.getpid(), signal.SIGUSR1)
            return train_one(laid_out, model)

        pretrain.loop.gradients = asked
    run(config)


def begin(config, log, rank=0, size=1, port=0, work=run):
    """Start ``work(config)``; its standard error goes to ``log``. Returns the process."""
    environment = {}
    if size > 1:
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    process = CONTEXT.Process(target=_work, args=(work, config, str(log), environment))
    process.start()
    return process


def begin_all(config, folder, size, work=run):
    """Start the ``size`` processes of one run; logs are ``folder``/RANK.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [begin(config, folder / f"{rank}.log", rank, size, port, work) for rank in range(size)]


def end(process, after=None, number=signal.SIGKILL, group=False):
    """Wait; send a signal ``after`` seconds if it still runs then. The exit code.

    With ``group`` it goes to the loader processes too, as torchrun's and schedulers' signals do.
    """
    process.join(after)
    if process.is_alive() and after is not None:
        (os.killpg if group else os.kill)(process.pid, number)
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _work(work, config, log, environment):
    os.setpgrp()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in a script
    torch.set_num_threads(1)
    with open(log, "a", encoding="utf-8") as sys.stderr:
        try:
            work(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)


def weights(path):
    """Everything in a checkpoint that training goes on from, by name."""
    state = torch.load(path, weights_only=True)
    flat = {f"model.{k}": v for k, v in state["state_dict"].items()}
    for number, moments in state["optimizer"]["state"].items():
        flat[f"momentum.{number}"] = moments["momentum_buffer"]
    return flat


def identical(one, other):
    """Whether two checkpoints hold the same, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lines(out, name):
    """A run's JSON lines without their clocks."""
    text = (Path(out) / name).read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCKS} for x in text]
