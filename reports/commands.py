"""The command line that makes a section's records again, from what they say of themselves."""

import json
import shlex
from typing import Any

from reports.markdown import fenced
from reports.sections import Group, Section


def commands(sections: list[Section]) -> list[str]:
    """One command per benchmark and protocol, with the backbones it ran on."""
    groups = [group for section in sections for group in section.groups]
    if not groups:
        return []
    lines = []
    for group in groups:
        names = dict.fromkeys(entry.record.backbone["name"] for entry in group.entries)
        data = f"{group.dataset.name} ({group.dataset.fingerprint[:8]})"
        about = f"{group.benchmark} on {data}: {', '.join(sorted(names))}"
        lines += [f"# {' '.join(about.split())}", command(group), ""]
    return [
        "### Commands",
        "",
        "BACKBONE stands for each backbone named above its line, DATA for the data set's folder. Where a "
        "preset, or the version of a benchmark, has changed since, the same line makes other records.",
        "",
        *fenced("\n".join(lines), "sh"),
        "",
    ]


def command(group: Group) -> str:
    """``siambench VERB --preset NAME ...`` with every setting that is not the preset's."""
    record = group.entries[0].record
    words = ["siambench", *record.verb.split()]
    if record.benchmark != record.verb:
        words += ["--preset", record.benchmark]
    words += ["--backbone", "BACKBONE", "--data", "DATA"]
    for name in record.overrides:
        if name in record.protocol:
            words += [f"--{name}", _value(record.protocol[name])]
    first = min(e.record.seed - e.record.trial for e in group.entries)
    trials = max(e.record.seed for e in group.entries) - first + 1
    words += ["--seed", str(first)] if first else []
    words += ["--trials", str(trials)] if trials > 1 else []
    return shlex.join(" ".join(word.split()) for word in words)


def _value(value: Any) -> str:
    """A setting as a flag takes it."""
    if isinstance(value, list) and len(value) > 1 and all(map(_bare, value)):
        return ",".join(map(_value, value))
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _bare(value: Any) -> bool:
    """Whether a comma after it ends it."""
    return isinstance(value, (int, float)) or (isinstance(value, str) and value.isidentifier())
