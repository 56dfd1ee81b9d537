"""A detector's search for a learning rate, as Markdown."""

import math
from collections.abc import Sequence

from reports.collect import Entry
from reports.markdown import MISSING, Links, cell_text, escape, pipe_table, values_text
from reports.rows import Backbone
from reports.sections import Section
from reports.stats import Cell
from reports.tables import Layout


def rates_tried(
    section: Section, made: Layout, backbones: Sequence[Backbone], links: Links
) -> list[str]:
    """Every rate's AP on the held-out part per backbone, that of the chosen rate bold.

    Args:
        section: its protocol says by what the rates are scaled to the batch.
        made: holds the search; nothing without one.
        backbones: the rows.
        links: collects the links to the records.
    """
    if not made.rates:
        return []
    protocol = section.groups[0].protocol
    batch = protocol.get("batch_size", 1)
    factor = batch / protocol.get("reference_batch", batch)
    rows = []
    for b in backbones:
        ran = made.ran.get(b.row)
        cells = [(rate, found[b.row]) for rate, found in made.rates.items() if b.row in found]
        if not cells:
            continue
        chosen = {
            rate
            for rate, _ in cells
            for value in (ran.values if ran else ())
            if math.isclose(rate * factor, value, rel_tol=1e-6)
        }
        texts = {r: cell_text(_once(cell), 2, links, r in chosen) for r, cell in cells}
        tried = [texts.get(rate, MISSING) for rate in made.rates]
        rows.append([escape(b.label), *tried, values_text(ran, links)])
    header = ["backbone", *(f"lr {rate:g}" for rate in made.rates), f"trained with, batch {batch}"]
    caption = (
        "Learning rates were searched on a held-out part of the training set, per backbone: box AP % "
        f"there; bold: the rate that then trained on all of it; {MISSING}: diverged. The test set saw "
        "that one alone:"
    )
    return [caption, "", *pipe_table(header, rows), ""]


def _once(cell: Cell) -> Cell:
    """Without repetition: the trials of a run share one search."""
    once: dict[float, Entry] = {}
    for value, entry in zip(cell.values, cell.entries, strict=True):
        once.setdefault(value, entry)
    return Cell(tuple(once), tuple(once.values()))
