"""The losses of a fine-tuning as JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path

from siambench.files import write_text

EVERY = 20  # iterations between lines


class Curve:
    """``curve.jsonl``; a resumed run takes back the lines after its checkpoint.

    Args:
        path: the file.
        start: iterations done before.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        lines = path.read_bytes().splitlines() if path.exists() and start else []
        kept = [line.decode() for line in lines if 0 < _iteration(line) <= start]
        write_text(path, "".join(line + "\n" for line in kept))

    def add(self, done: int, lr: float, losses: Mapping[str, float]) -> None:
        """A line for the ``done``-th iteration, if it is one of those that are kept."""
        if done % EVERY == 0:
            rounded = {name: round(value, 5) for name, value in losses.items()}
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"iteration": done, "lr": lr, **rounded}) + "\n")


def _iteration(line: bytes) -> int:
    """Which iteration a line is of; 0 for one that a kill or a power cut spoilt."""
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, TypeError, KeyError):
        return 0
