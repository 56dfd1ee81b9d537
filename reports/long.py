"""report.csv: every number of every record, one a row."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from reports.collect import Entry
from reports.markdown import relative

HEADER = (
    *("backbone", "method", "epochs", "arch", "benchmark", "verb", "dataset", "engine"),
    *("seed", "trial", "metric", "value", "unit", "split", "params", "overrides", "record"),
    *("protocol_hash", "backbone_sha256", "dataset_fingerprint"),
)


def long_csv(entries: Sequence[Entry], folder: Path) -> str:
    """One line a number, as written in its record.

    Values have all their digits. ``params`` is JSON with sorted keys, ``overrides`` has spaces between
    names, what a backbone file does not say is empty.

    Args:
        entries: the records, in the order of the rows.
        folder: of the file: ``record`` is relative to it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for entry in entries:
        r, b = entry.record, entry.record.backbone
        before = [b["name"], b["method"], b["epochs"], b["arch"], r.benchmark, r.verb]
        before += [r.dataset.name, r.engine, r.seed, r.trial]
        after = [" ".join(r.overrides), relative(entry.path, folder), r.protocol_hash]
        after += [b["sha256"], r.dataset.fingerprint]
        for m in r.metrics:
            params = json.dumps(m.params, sort_keys=True, ensure_ascii=False)
            writer.writerow([*before, m.name, repr(m.value), m.unit, m.split, params, *after])
    return text.getvalue()
