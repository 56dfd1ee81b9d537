"""Progress: a bar on a terminal, a plain line now and then in a log file, nothing when quiet.

Everything goes to standard error; standard output belongs to results.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LINE_EVERY = 15.0  # seconds between plain lines
_quiet = False
_latest = ""


def set_quiet(quiet: bool) -> None:
    """Silence (or restore) progress and :func:`say` in this process."""
    global _quiet
    _quiet = quiet


@contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """Silence progress and :func:`say` while the body runs, if ``quiet``."""
    global _quiet
    before, _quiet = _quiet, _quiet or quiet
    try:
        yield
    finally:
        _quiet = before


def latest() -> str:
    """The last step of progress in this process, as a line; ``""`` before the first."""
    return _latest


def say(text: str) -> None:
    """One line to standard error, unless quiet."""
    if not _quiet:
        _console().print(text, markup=False, highlight=False)


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


class Bar:
    """What :func:`bar` yields: call :meth:`advance` as work is done."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.stats = ""

    def advance(self, steps: int = 1, **stats: float | str) -> None:
        """Count ``steps`` as done and show ``stats`` (e.g. ``loss=0.31``) behind the bar."""
        self.done += steps
        if stats:
            shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in stats.values())
            self.stats = "  ".join(f"{k} {v}" for k, v in zip(stats, shown, strict=True))
        global _latest
        _latest = f"{self.title}: {self.done}/{self.total}  {self.stats}".rstrip()
        self._show()

    def _show(self) -> None:
        pass


class _Lines(Bar):
    def __init__(self, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        self._start = self._last = time.monotonic()
        self._first = done

    def _show(self) -> None:
        now = time.monotonic()
        if self.done >= self.total or now - self._last >= _LINE_EVERY:
            self._last = now
            spent = now - self._start
            left = spent * (self.total - self.done) / max(1, self.done - self._first)
            say(
                f"{self.title}: {self.done}/{self.total}  {spent:.0f} s  eta {left:.0f} s  "
                f"{self.stats}"
            )


class _Rich(Bar):
    def __init__(self, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        from rich import progress as rp

        self._progress = rp.Progress(
            rp.TextColumn("{task.description}", markup=False),
            rp.BarColumn(),
            rp.MofNCompleteColumn(),
            rp.TimeElapsedColumn(),
            rp.TextColumn("eta"),
            rp.TimeRemainingColumn(),
            rp.TextColumn("{task.fields[stats]}", markup=False),
            console=_console(),
        )
        self._task = self._progress.add_task(title, total=total, completed=done, stats="")
        self._progress.start()

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, stats=self.stats)

    def close(self) -> None:
        self._progress.stop()


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress of ``total`` steps while the body runs.

    Args:
        title: what is being done, e.g. ``"linear: epochs"``; empty to show nothing.
        total: number of steps.
        done: steps already done before a resume.
    """
    if _quiet or not title:
        yield Bar(title, total, done)
    elif sys.stderr.isatty():
        shown = _Rich(title, total, done)
        try:
            yield shown
        finally:
            shown.close()
    else:
        yield _Lines(title, total, done)
