"""Asked to stop: finish the step, save, exit. Asked again: now."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from siambench.progress import say

if TYPE_CHECKING:  # every command imports this module, and not all of them torch
    from siambench.distributed import World

# What schedulers send before they kill (Slurm: --signal=USR1@120), and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop, and by what.

    A torchrun that is gone asks too: nothing else would end the processes that it started.
    """

    def __init__(self) -> None:
        self.name = ""
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __bool__(self) -> bool:
        if self._parent is not None and os.getppid() != self._parent:
            self.name = self.name or "torchrun is gone"
        return bool(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def stop_saved(asked: "StopRequest", world: "World", what: str) -> NoReturn:
    """End a training that was asked to stop, when every process knows that its state is saved.

    Args:
        asked: what asked, if it was this process.
        world: the processes.
        what: is saved, e.g. ``"detect simsiam: iteration 120"``.

    Raises:
        KeyboardInterrupt: always; the command then exits with 130.
    """
    world.any(False)
    say(f"{asked.name or 'another process was asked to stop'}: {what} is saved")
    raise KeyboardInterrupt


def leave_to_parent(worker: int) -> None:
    """For a loader process: what asks a whole process group to stop is for the parent to answer.

    torchrun, schedulers and terminals signal the group; a loader process that dies of it would cost
    the parent its step. So it leaves the group. The parent ends it, and one without a parent ends itself.
    """
    os.setpgid(0, 0)


@contextmanager
def stopped_by_schedulers() -> Iterator[None]:
    """SIGTERM and SIGUSR1 are as one Ctrl-C while the body runs, where nothing else takes them.

    In the main thread only, and only instead of the default, which is to die on the spot.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    taken = [n for n in SIGNALS if signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGUSR1 and the first Ctrl-C while the body runs, instead of dying of them.

    In threads other than the main one, which get no signals, the request stays unset.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
