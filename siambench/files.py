"""Files that are whole or not there: write beside, fsync, rename. And their digests."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from siambench.errors import UserError, first_line


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed to ``path``.

    If the body raises, or the process dies, ``path`` keeps what it had before. The temporary name
    carries host and process, so that two processes writing one file do not mix; what dead processes
    of this host left behind is removed.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in leftovers(path):
            left.unlink(missing_ok=True)
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # some libraries put a file of their own, for its owner alone
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself survives a power cut
        finally:
            os.close(folder)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        if type(error).__name__ == "SafetensorError" or "inline_container" in str(error):
            # the libraries' own words for what stopped the write, torch's without a reason
            why = "disk full?" if "inline_container" in str(error) else first_line(error)
            raise UserError(f"cannot write {path}: {why}") from error
        raise


def temporary_path(path: Path) -> Path:
    """The name beside ``path`` under which this process makes it."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")


def leftovers(path: Path) -> list[Path]:
    """Temporary files or folders of ``path`` whose processes, of this host, are dead."""
    dead = []
    for left in path.parent.glob(f".{path.name}.{platform.node()}-*.tmp"):
        pid = left.name.removesuffix(".tmp").rpartition("-")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            dead.append(left)
        except (ValueError, PermissionError):
            continue
    return dead


def writable_folder(path: str | Path, what: str) -> Path:
    """``path`` as a folder that exists and can be written to; it is made when absent.

    Raises:
        UserError: it cannot be; before any work rather than after.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(path / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be written to: {error.strerror}") from None
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def canonical_json(value: Any) -> str:
    """The one JSON spelling of ``value``: sorted keys, no spaces, no NaN. What digests are made of.

    Raises:
        ValueError: ``value`` holds NaN or infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def existing(path: str | Path, what: str, *, folder: bool = False, hint: str = "") -> Path:
    """``path`` as a Path, or one clear line.

    Args:
        path: what the user named.
        what: the noun of the message, e.g. ``"backbone file"``.
        folder: whether a folder is wanted rather than a file.
        hint: what to do, added to the message.

    Raises:
        UserError: nothing is there, or a file where a folder is wanted (or the reverse).
    """
    path = Path(path)
    check: Callable[[], bool] = path.is_dir if folder else path.is_file
    if not check():
        kind = "folder" if folder else "file"
        found = f"is not a {kind}" if path.exists() else "does not exist"
        raise UserError(f"{what}: {path} {found}{'; ' + hint if hint else ''}")
    return path


MOST_NAME = 100  # bytes: names become parts of file names, which may have 255


def check_name(name: str, what: str) -> None:
    """Refuse a name that files and folders could not carry, or would carry elsewhere.

    Args:
        name: given by the user.
        what: opens the message.

    Raises:
        UserError: it is empty, too long, begins with a point or a minus, or has a slash or what cannot be printed.
    """
    bad = [c for c in name if c in "/\\" or not c.isprintable()]
    if bad:
        raise UserError(
            f"{what} is {name!r}; it becomes a file's name and must not have {bad[0]!r}"
        )
    if not name.strip() or name[0] in ".-" or len(name.encode()) > MOST_NAME:
        raise UserError(
            f"{what} is {name!r}; it becomes a file's name: 1 to {MOST_NAME} bytes, not beginning with . or -"
        )
