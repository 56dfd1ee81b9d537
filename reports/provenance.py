"""How a report was made: protocols, data, machines, versions, hours, and what is not in it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from reports.collect import Collected, Entry
from reports.commands import commands
from reports.markdown import MISSING, code, escape, fenced, pipe_table, relative, summary
from reports.rows import Backbone
from reports.sections import Group, Section, differing_fields
from siambench import __version__


def protocol_details(section: Section) -> list[str]:
    """Every setting of the section's records, folded away; first what sets it apart from siblings."""
    lines = []
    for group in section.groups:
        kin = [g for g in section.siblings if g.benchmark == group.benchmark]
        if kin:
            lines += _differences(group, kin)
        dumped = yaml.safe_dump(group.protocol, sort_keys=True, allow_unicode=True)
        title = summary(f"Protocol of {group.benchmark}, {group.protocol_hash[:8]}")
        lines += [title, "", *fenced(dumped, "yaml"), "", "</details>", ""]
    return lines


def _differences(group: Group, kin: list[Group]) -> list[str]:
    fields = differing_fields([group, *kin])
    what = "other protocols or data" if fields else "other data"
    lines = [
        f"{code(group.benchmark)} was also run with {what}; those records are in sections of their own."
    ]
    if fields:
        header = [
            "setting",
            f"here ({group.protocol_hash[:8]})",
            *(g.protocol_hash[:8] for g in kin),
        ]
        rows = [
            [escape(name), *(escape(_plain(v)) for v in values)] for name, values in fields.items()
        ]
        lines += ["", *pipe_table(header, rows, left=len(header))]
    return [*lines, ""]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def how_made(
    collected: Collected, rows: Sequence[Backbone], sections: list[Section], folder: Path
) -> list[str]:
    """The closing section."""
    entries = collected.entries
    hours = sum(e.record.seconds for e in entries) / 3600
    lines = ["## How this was made", ""]
    if entries:
        starts = sorted(e.record.started for e in entries)
        lines += [
            f"{_count(len(entries), 'record')}, {hours:.2f} hours of evaluation in all, started "
            f"between {escape(starts[0])} and {escape(starts[-1])}. Report by siambench "
            f"{__version__}.",
            "",
            *_backbones(rows),
            *_datasets(sections),
            *commands(sections),
            *_tally("Hardware", entries, lambda e: e.record.hardware),
            *_tally("Software", entries, lambda e: e.record.software),
        ]
    else:
        lines += [f"No finished evaluation yet. Report by siambench {__version__}.", ""]
    if collected.left_out:
        lines += ["### Left out", ""]
        for left in collected.left_out:
            where = relative(left.path, folder)
            lines.append(f"- {code(where)}: {escape(left.reason)}")
        lines.append("")
    return lines


def _backbones(rows: Sequence[Backbone]) -> list[str]:
    table = [
        [
            *(escape(x) or MISSING for x in (b.label, b.arch, b.method, b.epochs)),
            code(b.row.sha256[:16]),
        ]
        for b in rows
        if b.row.sha256
    ]
    header = ["backbone", "architecture", "method", "epochs", "SHA-256"]
    return ["### Backbones", "", *pipe_table(header, table, left=5), ""]


def _datasets(sections: list[Section]) -> list[str]:
    used: dict[tuple[str, str], tuple[dict[str, int], list[str]]] = {}
    for group in [g for section in sections for g in section.groups]:
        data = group.dataset
        _, names = used.setdefault((data.name, data.fingerprint), (data.counts, []))
        if group.benchmark not in names:
            names.append(group.benchmark)
    table = [
        [
            escape(name),
            code(fingerprint[:16]),
            escape(", ".join(f"{k} {v:,}" for k, v in counts.items())) or MISSING,
            escape(", ".join(names)),
        ]
        for (name, fingerprint), (counts, names) in used.items()
    ]
    header = ["data set", "fingerprint", "counts", "used by"]
    return ["### Data", "", *pipe_table(header, table, left=4), ""]


def _tally(title: str, entries: list[Entry], of: Callable[[Entry], dict[str, Any]]) -> list[str]:
    """One line per distinct dictionary, with the number of records that have it."""
    seen = Counter(", ".join(f"{k} {v}" for k, v in of(e).items()) for e in entries)
    lines = [f"- {escape(text)} ({_count(n, 'record')})" for text, n in sorted(seen.items())]
    return [f"### {title}", "", *lines, ""]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
