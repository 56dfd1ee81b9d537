"""A job in two processes on this machine, as torchrun would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from siambench.distributed import World, join
from siambench.errors import UserError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torchvision", "siambench.evaluation"])


def in_two(run: Callable[..., Any], folder: Path, *arguments: Any) -> list[int | None]:
    """``run(*arguments, folder, world)`` in two processes, a function of a module; their exit codes.

    A UserError ends a process with 2, its text in ``folder``/RANK.ERROR.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        CONTEXT.Process(target=_work, args=(run, arguments, folder, rank, port)) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    return [process.exitcode for process in both]


def _work(
    run: Callable[..., Any], arguments: tuple[Any, ...], folder: Path, rank: int, port: int
) -> None:
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        with join("cpu") as world:
            run(*arguments, folder, world)
    except UserError as error:
        (folder / f"{rank}.{type(error).__name__}").write_text(str(error))
        raise SystemExit(2) from None


def dying(module: Any, at: int) -> None:
    """Let this process end without a word when ``module`` has saved its state after ``at`` iterations."""
    save = module.save

    def save_and_die(path: Path, model: Any, optimizer: Any, done: int) -> None:
        save(path, model, optimizer, done)
        if done == at:
            os._exit(9)

    module.save = save_and_die


ALONE = World(0, 1, torch.device("cpu"))
