"""Who works in a folder: one at a time, on any file system.

The hold is a file made by ``link``, which exactly one of several machines succeeds in, on NFS too
(open(2), O_EXCL); no lock is asked of the file system. Its holder touches it every few seconds, so
that the hold of a process that died is told by its age, or at once on the same machine.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from siambench.alive import BEAT, LOST_AFTER, age, born, place, repeated
from siambench.errors import UserError
from siambench.files import temporary_path
from siambench.progress import say

_SILENT = 6 * BEAT  # seconds to listen for a holder on another machine


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        host, pid: the process.
        place, born: what tells it from another that has its number: :mod:`siambench.alive`.
        since: ISO time (UTC).
        command: its command line.
    """

    host: str
    pid: int
    place: str
    born: int
    since: str
    command: str


@contextmanager
def held(path: Path, folder: Path) -> Iterator[None]:
    """Hold ``folder`` through the file ``path`` while the body runs.

    A holder on another machine that was heard of lately is listened for, half a minute.

    Raises:
        UserError: another process holds it; says which and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    program, *words = sys.argv
    me = Holder(
        platform.node(),
        os.getpid(),
        place(),
        born(os.getpid()),
        datetime.now(UTC).isoformat(timespec="seconds"),
        " ".join([Path(program).name, *words]),
    )
    while not _make(path, me):
        other = _read(path)
        if other is not None and _at_work(path, other):
            raise UserError(
                f"{folder} is in use by process {other.pid} on {other.host} since {other.since} "
                f"({other.command}); wait for it, end it, or take another folder"
            )
        _clear(path, other)

    def beat() -> None:
        if _read(path) == me:
            os.utime(path)

    try:
        with repeated(beat):
            yield
    finally:
        if _read(path) == me:
            path.unlink(missing_ok=True)


def holder(path: Path) -> Holder | None:
    """Who holds through the file ``path``; None where nobody does, or who did is dead. Does not wait."""
    found = _read(path)
    with suppress(OSError):
        if found is not None and _seems_at_work(path, found):
            return found
    return None


def _read(path: Path) -> Holder | None:
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _seems_at_work(path: Path, other: Holder) -> bool:
    """Whether its process is there, or, elsewhere, was heard of lately."""
    if other.place == place():
        return born(other.pid) == other.born
    return age(path) <= LOST_AFTER


def _at_work(path: Path, other: Holder) -> bool:
    """As :func:`_seems_at_work`, but sure: one that is elsewhere is heard of again."""
    with suppress(OSError):
        if not _seems_at_work(path, other):
            return False
        if other.place == place():
            return True
        say(f"{path.parent} was in use on {other.host} just now; listening for it")
        before, end = age(path), time.monotonic() + _SILENT
        while time.monotonic() < end:
            time.sleep(BEAT / 5)
            if (now := age(path)) < before:
                return True
            before = now
    return False


def _make(path: Path, me: Holder) -> bool:
    """Make the hold, unless there is one."""
    mine = temporary_path(path)
    mine.write_text(json.dumps(asdict(me)) + "\n", encoding="utf-8")
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        os.replace(mine, path)
    finally:
        mine.unlink(missing_ok=True)
    return True


def _clear(path: Path, dead: Holder | None) -> None:
    """Take the hold of ``dead`` away; put it back if it was another's by then."""
    aside = temporary_path(path.with_name(f"{path.name}-old"))
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != dead:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
