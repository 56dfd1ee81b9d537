"""The rows of every table: which backbones, in which order, under which label."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from reports.collect import Entry
from reports.stats import Row, row_of
from siambench.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A row of ours.

    Attributes:
        row: name and SHA-256 of the file; the latter is ``""`` for one that has no record yet.
        label: the name, with the start of the SHA-256 where two files have the same name.
        method, epochs, arch: as the backbone file says; ``""`` when it does not.
    """

    row: Row
    label: str
    method: str = ""
    epochs: str = ""
    arch: str = ""


def check_order(order: Sequence[str], entries: list[Entry], others: Sequence[str]) -> None:
    """Refuse a name in ``order`` that no record and no job has.

    Raises:
        UserError: with the name that was perhaps meant.
    """
    known = list(dict.fromkeys([*(row_of(entry).name for entry in entries), *others]))
    for name in order:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"is {near[0]!r} meant? " if near else ""
            raise UserError(
                f"report: --order: {name!r} has neither a record nor a job; {meant}There are: "
                f"{', '.join(known) or 'none'}"
            )


def backbones_of(
    entries: list[Entry], order: Sequence[str], others: Sequence[str] = ()
) -> list[Backbone]:
    """All backbones: those with a place in ``order`` first, then by name.

    Args:
        entries: their records.
        order: names, with a record or without one.
        others: names that have a row too, if they have no record yet.
    """
    found = {row_of(e): e.record.backbone for e in reversed(entries)}
    named = {row.name for row in found}
    rows = [
        *found,
        *(Row(name, "") for name in dict.fromkeys([*order, *others]) if name not in named),
    ]
    place = {name: i for i, name in enumerate(dict.fromkeys(order))}
    rows.sort(key=lambda row: (place.get(row.name, len(place)), row))
    names = [row.name for row in rows]
    backbones = []
    for row in rows:
        meta = found.get(row, {})
        epochs = meta.get("epochs")
        backbones.append(
            Backbone(
                row=row,
                label=row.name if names.count(row.name) == 1 else f"{row.name} ({row.sha256[:8]})",
                method=str(meta.get("method", "")),
                epochs="" if epochs is None else str(epochs),
                arch=str(meta.get("arch", "")),
            )
        )
    return backbones
