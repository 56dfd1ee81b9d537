"""The formats a report is written in, and the names of its files."""

from collections.abc import Sequence
from pathlib import Path

from siambench.errors import UserError

ENDINGS = {"md": ".md", "html": ".html", "csv": ".csv", "latex": ".tex"}


def known_formats(names: Sequence[str]) -> list[str]:
    """``names``, each once.

    Raises:
        UserError: one is unknown, or there is none; the message has the choices.
    """
    wrong = [name for name in names if name not in ENDINGS]
    if wrong or not names:
        said = f"{wrong[0]!r} is no format" if wrong else "no format is named"
        raise UserError(f"report: --format: {said}; choose of {', '.join(ENDINGS)}")
    return list(dict.fromkeys(names))


def files_of(out: Path, formats: Sequence[str]) -> dict[str, Path]:
    """Format to file: ``out`` with the ending of each; an ending of another format gives way."""
    stem = out.with_suffix("") if out.suffix in ENDINGS.values() else out
    return {name: stem.with_name(stem.name + ENDINGS[name]) for name in formats}
