"""The run folder: one run at a time, and what an interrupted one leaves for schedulers to see."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siambench.errors import UserError
from siambench.files import writable_folder

INTERRUPTED = "interrupted"  # a file that is there when a run was asked to stop and saved


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other runs out of ``out`` while the body runs, and clear away what killed ones left.

    A POSIX record lock: gone with its process however that ends, not handed on to loader processes,
    and known to NFS. Where the file system has no locks, the folder is not held.

    Raises:
        UserError: another run holds it, or it cannot be written to.
    """
    writable_folder(out, "run folder")
    with open(out / ".lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise UserError(
                f"{out} is in use by {holder}; wait for it, end it, or give another --out"
            ) from None
        except OSError:
            pass  # no locks here: another run may be at work, so what lies there stays
        else:
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            for left in out.glob(".*.tmp"):
                left.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (out / INTERRUPTED).unlink()
        yield
