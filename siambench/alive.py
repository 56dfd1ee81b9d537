"""Whether a process is still at work, asked from this machine or from another that shares its files."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siambench.errors import UserError
from siambench.files import temporary_path

BEAT = 5.0  # seconds between two signs of life
LOST_AFTER = 120.0  # seconds without one: longer than NFS may keep a file's age from others (60 s)


def place() -> str:
    """What processes must share to see each other: the boot of a machine, and a container's namespace."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def born(pid: int) -> int:
    """When a process of this place began, in clock ticks since the boot; 0 if it is dead or unknown."""
    with suppress(OSError, ValueError, IndexError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in "ZX" else int(rest[18])  # proc(5): field 22; a zombie is dead
    return 0


def alive(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    if Path("/proc/self/stat").exists():
        return born(pid) > 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def age(path: Path) -> float:
    """Seconds since ``path`` was last written, by the clock of its file system.

    Raises:
        OSError: it is not there.
    """
    with open(path, "rb") as handle:  # opening asks an NFS server anew
        written = os.fstat(handle.fileno()).st_mtime
    probe = temporary_path(path.with_name("clock"))
    try:
        probe.touch()
        return probe.stat().st_mtime - written
    except OSError:  # a folder that is not ours to write to
        return time.time() - written
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


@contextmanager
def repeated(work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` now and every few seconds while the body runs; a full disk does not end the body."""
    stop = threading.Event()

    def loop() -> None:
        while True:
            with suppress(OSError, UserError):
                work()
            if stop.wait(BEAT):
                return

    thread = threading.Thread(target=loop, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
