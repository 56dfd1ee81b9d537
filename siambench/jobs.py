"""The jobs of a run and how each stands, as a reader sees them."""

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class JobState:
    """A job of a run.

    Attributes:
        name: e.g. ``"detect voc07-frcnn-c4 simsiam"``.
        state: waiting, running, done, failed, interrupted or lost.
        verb: what does it.
        benchmark: preset, or the verb where there is none; ``""`` of pre-training and conversion.
        backbone: that it makes or evaluates.
        reason: one line: why it failed.
        retry: the command that does this job alone.
    """

    name: str
    state: str = "waiting"
    verb: str = ""
    benchmark: str = ""
    backbone: str = ""
    reason: str = ""
    retry: str = ""


_FIELDS = {f.name for f in fields(JobState)}


def read_states(root: Path) -> list[JobState]:
    """All jobs of a run folder, by file name; files that are no job's are passed over."""
    states = []
    for path in sorted((root / "run").glob("*.json")):
        with suppress(OSError, ValueError, TypeError, AttributeError):
            body = json.loads(path.read_text(encoding="utf-8"))
            states.append(JobState(**{k: v for k, v in body.items() if k in _FIELDS}))
    return states
