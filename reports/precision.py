"""Precision-recall curves, from the files that detection's jobs leave."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reports.answers import job_folder
from reports.collect import Entry
from reports.rows import Backbone
from reports.sections import Section
from reports.stats import Row, row_of
from reports.tables import MOST_PAIRS, Curve, Layout

_IOUS = (0.5, 0.75)


def precision_curves(
    section: Section, made: Layout, backbones: Sequence[Backbone]
) -> dict[str, dict[str, Curve]]:
    """``box`` and ``mask`` to the label of a backbone to the curve of its first trial.

    Of more backbones than can be told apart the best by the section's first headline are read. Files
    that are absent or damaged are passed over.

    Args:
        section: of detection; others have none.
        made: its tables.
        backbones: in the order of the rows.
    """
    if section.verb != "detect":
        return {}
    first: dict[Row, Entry] = {}
    for entry in section.entries:
        first.setdefault(row_of(entry), entry)
    scores = made.headline[0].cells if made.headline else {}
    rows = [b for b in backbones if b.row in first]
    found: dict[str, dict[str, Curve]] = {}
    for b in sorted(rows, key=lambda b: -scores[b.row].mean if b.row in scores else 0.0):
        if len(found) == MOST_PAIRS:
            break
        if curves := _read(job_folder(first[b.row]) / "precision.json"):
            found[b.label] = curves
    kinds = [kind for kind in ("box", "mask") if any(kind in curves for curves in found.values())]
    return {
        kind: {b.label: found[b.label][kind] for b in rows if kind in found.get(b.label, {})}
        for kind in kinds
    }


def _read(path: Path) -> dict[str, Curve]:
    """The curves of one job; none if the file cannot be made sense of."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recall = np.array(content["recall"], float)
        at = [content["iou"].index(iou) for iou in _IOUS]
        curves = {}
        for kind, classes in content["precision"].items():
            precision = np.array(list(classes.values()), float)[:, at].mean(axis=0)
            if precision.shape != (len(_IOUS), *recall.shape) or not np.isfinite(precision).all():
                return {}
            curves[kind] = Curve(recall, precision)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return {}
    return curves
