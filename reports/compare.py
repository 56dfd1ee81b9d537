"""Two backbones against each other: the differences of all that both were measured by."""

import difflib
import math
from collections.abc import Iterator, Sequence

from reports.difference import Difference, difference, holm
from reports.markdown import MISSING, Links, cell_text, escape, pipe_table, summary
from reports.overview import Headline
from reports.rows import Backbone
from reports.sections import Section
from reports.stats import Cell
from reports.tables import Column, Layout
from siambench.errors import UserError

Pair = tuple[Backbone, Backbone]
Found = tuple[str, Column]  # what it is called, and its numbers


def find_pair(names: Sequence[str], backbones: Sequence[Backbone]) -> Pair:
    """The two backbones of ``--compare``.

    Raises:
        UserError: a name is no backbone's, or several files', or both are one; the message has the
            known names.
    """
    labels = [b.label for b in backbones if b.row.sha256]
    found = []
    for name in names:
        rows = [b for b in backbones if b.label in labels and name in (b.label, b.row.name)]
        if len(rows) != 1:
            wrong = "is the name of several files" if rows else "has no record"
            near = difflib.get_close_matches(name, labels, 1, 0.5)
            ask = f"did you mean {near[0]!r}? " if near and not rows else ""
            known = ", ".join(labels) or "none"
            raise UserError(f"report: --compare: {name!r} {wrong}; {ask}There are: {known}")
        found += rows
    a, b = found
    if a is b:
        raise UserError(f"report: --compare: {a.label!r} is named twice; name two backbones")
    return a, b


def comparison(
    pair: Pair,
    columns: Sequence[Headline],
    sections: Sequence[tuple[Section, Layout]],
    links: Links,
) -> list[str]:
    """A section: headline metrics, and folded all other main ones, each table with its own Holm.

    Args:
        pair: A and B.
        columns: the headline metrics.
        sections: that they are of: never are numbers of two protocols compared.
        links: collects the links to the records.
    """
    a, b = pair
    named = [(c.text.replace("<br>", " ", 1).replace("<br>", ", "), c.column) for c in columns]
    headlines = [(name, column) for name, column in named if _both(pair, column)]
    others = [found for section, made in sections for found in _others(section, made)]
    others = [(name, column) for name, column in others if _both(pair, column)]
    alone = [name for name, column in named if any(x.row in column.cells for x in pair)]
    alone = [name for name in alone if name not in dict(headlines)]
    title = f"{escape(a.label)} against {escape(b.label)}"
    lines = [f"## {title}", ""]
    if headlines:
        lines += [_meaning(pair), "", *_table(pair, headlines, links), ""]
    else:
        lines += ["Nothing that both were measured by.", ""]
    if others:
        lines += [summary(f"All other main metrics of {a.label} and {b.label}"), ""]
        lines += [*_table(pair, others, links), "", "</details>", ""]
    if alone:
        lines += [f"Measured of one of the two alone: {', '.join(alone)}.", ""]
    return lines


def _both(pair: Pair, column: Column) -> bool:
    return all(x.row in column.cells for x in pair)


def _others(section: Section, made: Layout) -> Iterator[Found]:
    """The columns of the tables that are not folded, without intervals and repeated headlines."""
    where = " and ".join(dict.fromkeys(escape(g.benchmark) for g in section.groups))
    shown = [id(column.cells) for column in made.headline]
    for table in made.tables:
        of = table.caption.split(". ")[0].removesuffix("%").rstrip(" ,")
        for column in table.columns if not table.folded else ():
            if not column.upper and id(column.cells) not in shown:
                name = escape(f"{of}: {column.header}")
                yield f"[{where}](#{section.anchor}) {name}", column


def _meaning(pair: Pair) -> str:
    a, b = (escape(x.label) for x in pair)
    return (
        f"Differences are {a} minus {b}, in points, with 95 % intervals over trials: Welch's, or over "
        "the differences of equal seeds where both have the same seeds and that interval is at most two "
        "thirds as wide. p is two-sided, of no difference; Holm's is corrected for all rows of its table "
        "that have a p; **bold**: below 0.05 even so. Intervals over the test images say how much other "
        "test images would move a score, nothing of other seeds; where they are apart the images alone "
        "do not explain the difference, where they overlap they may:"
    )


def _table(pair: Pair, found: Sequence[Found], links: Links) -> list[str]:
    a, b = pair
    made = [difference(_by_seed(c.cells[a.row]), _by_seed(c.cells[b.row])) for _, c in found]
    corrected = holm([d.p for d in made])
    rows = []
    for (name, column), d, p in zip(found, made, corrected, strict=True):
        gap = f"{d.value:+.2f}".replace("-", "−")
        rows.append(
            [
                name,
                *(cell_text(column.cells[x.row], 2, links) for x in pair),
                f"**{gap}**" if p < 0.05 else gap,
                _ends(d),
                *(_probability(x) for x in (d.p, p)),
                d.how + _images(pair, column, d),
            ]
        )
    header = ["metric", escape(a.label), escape(b.label), "difference", "95 %", "p"]
    tested = sum(not math.isnan(d.p) for d in made)
    return pipe_table([*header, f"p (Holm, {tested} rows)", "by"], rows)


def _by_seed(cell: Cell) -> dict[int, float]:
    """Seeds of a run are all different; should two be equal, they are told apart but never paired."""
    seeds = [entry.record.seed for entry in cell.entries]
    unique = len(set(seeds)) == len(seeds)
    keys = seeds if unique else range(-1, -len(seeds) - 1, -1)
    return dict(zip(keys, cell.values, strict=True))


def _ends(d: Difference) -> str:
    if math.isnan(d.low):
        return MISSING
    return f"{d.low:+.2f} to {d.high:+.2f}".replace("-", "−")


def _probability(p: float) -> str:
    if math.isnan(p):
        return MISSING
    return escape("<0.001") if p < 0.001 else f"{p:.3f}"


def _images(pair: Pair, column: Column, d: Difference) -> str:
    """Of single trials, whether the bootstrap intervals over the test images overlap."""
    ends = column.interval
    if d.how != "one trial" or ends is None or any(b.row not in ends.cells for b in pair):
        return ""
    low = [ends.cells[b.row].mean for b in pair]
    high = [ends.upper[b.row].mean for b in pair]
    overlap = max(low) <= min(high)
    return f"; 95 % intervals over test images {'overlap' if overlap else 'are apart'}"
