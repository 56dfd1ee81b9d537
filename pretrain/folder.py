"""The run folder: one run at a time, and what an interrupted one leaves for schedulers to see."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siambench import hold
from siambench.files import writable_folder

INTERRUPTED = "interrupted"  # a file that is there when a run was asked to stop and saved


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other runs out of ``out`` while the body runs, and clear away what killed ones left.

    Raises:
        UserError: another run holds it, or it cannot be written to.
    """
    writable_folder(out, "run folder")
    with hold.held(out / ".hold", out):
        for left in out.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        (out / INTERRUPTED).unlink(missing_ok=True)
        yield
