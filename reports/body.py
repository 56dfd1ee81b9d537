"""One section of the report: its tables, what explains them, pictures and protocol."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from reports.answers import answers
from reports.chosen import chosen, whole_sweep
from reports.markdown import Links, code, escape, summary
from reports.metric_table import metric_table
from reports.opening import opening
from reports.provenance import protocol_details
from reports.published import BESIDE, DATASETS, PublishedRow, published_name, published_rows
from reports.rates import rates_tried
from reports.rows import Backbone
from reports.sections import Section
from reports.segmentation import above_random
from reports.states import States, told
from reports.stats import row_of
from reports.tables import MOST_CURVES, MOST_PAIRS, Layout, Table


def section_text(
    section: Section,
    made: Layout,
    backbones: Sequence[Backbone],
    states: States,
    links: Links,
    out: Path,
) -> list[str]:
    """The section, from its heading to its protocol.

    Args:
        section: its records.
        made: what is shown of them.
        backbones: the rows.
        states: why some rows are not there.
        links: collects the links to the records.
        out: the report's file; pictures are copied to ``plots/`` beside it.
    """
    lines = [
        f'<a id="{section.anchor}"></a>',
        "",
        f"## {section.title}",
        "",
        *opening(section),
        _facts(section, backbones),
        "",
    ]
    rows, remark = _published(section)
    for table in [t for t in made.tables if not t.folded]:
        lines += _table(table, backbones, rows, links)
    lines += _missing(section, backbones, states)
    if section.verb == "segment":
        lines += above_random(made, backbones)
    if remark:
        lines += [remark, ""]
    lines += chosen(made.sweeps, backbones, links)
    if made.shots.get("mAP"):
        lines += [f"![Low-shot mAP against k](plots/{lowshot_name(section)})", ""]
        lines += [_curves(made), ""]
    lines += rates_tried(section, made, backbones, links)
    if made.precision:
        lines += [f"![Precision against recall](plots/{precision_name(section)})", ""]
        lines += [_precision(section, made), ""]
    lines += answers(section, made.answers, backbones, out)
    bars = {table.caption: name for name, table in bar_tables(section, made).items()}
    for table in [t for t in made.tables if t.folded]:
        lines += _table(table, backbones, rows, links, bars.get(table.caption, ""))
    lines += whole_sweep(made.sweeps, backbones, links)
    for line in made.remarks:
        lines += [line, ""]
    return [*lines, *protocol_details(section)]


def _table(
    table: Table,
    backbones: Sequence[Backbone],
    rows: Sequence[PublishedRow],
    links: Links,
    bars: str = "",
) -> list[str]:
    """One table, folded or not, and below it the published rows that may not stand in it."""
    text = metric_table(table, backbones, [row for row in rows if not row.elsewise], links)
    if table.folded:
        picture = _bars(table, backbones, bars) if bars else []
        lines = [summary(table.caption), "", *text, "", *picture, "</details>", ""]
    else:
        lines = [f"{escape(table.caption)}:", "", *text, ""]
    others = metric_table(table, [], [row for row in rows if row.elsewise], links)
    if others:
        lines += ["Published with another engine or protocol, so not in the table above:", ""]
        lines += [*others, ""]
    return lines


def _missing(section: Section, backbones: Sequence[Backbone], states: States) -> list[str]:
    """The jobs that have not yet brought, or will not bring, a row to this section's tables."""
    have = {row_of(entry) for entry in section.entries}
    jobs = [
        job
        for b in backbones
        if b.row not in have
        for group in section.groups
        if (job := states.of(group.benchmark, b.row.name)) and job.state != "done"
    ]
    if not jobs:
        return []
    return ["No row yet:", "", *(f"- {told(job)}" for job in dict.fromkeys(jobs)), ""]


def _facts(section: Section, backbones: Sequence[Backbone]) -> str:
    """One line: how many trials, how long, with what."""
    records = [e.record for e in section.entries]
    counts = [Counter(map(row_of, group.entries)) for group in section.groups]
    most_of = {b.label: max(count[b.row] for count in counts) for b in backbones}
    trials = {label: n for label, n in most_of.items() if n}
    most = max(trials.values())
    if most == 1:
        text = "One trial each."
    elif len(set(trials.values())) == 1:
        text = f"Mean ± sample standard deviation over n = {most} trials."
    else:
        each = ", ".join(f"{escape(label)} {n}" for label, n in trials.items())
        text = f"Mean ± sample standard deviation over n trials: {each}."
    hours = sum(r.seconds for r in records) / 3600
    memory = max(r.peak_memory_bytes for r in records) / 2**30
    engines = ", ".join(dict.fromkeys(escape(r.engine) for r in records))
    return f"{text} Engine: {engines}. {hours:.2f} hours, peak memory {memory:.1f} GiB."


def _published(section: Section) -> tuple[list[PublishedRow], str]:
    """The published rows that may stand beside ours, and the line that explains them or their lack."""
    names = tuple(name for g in section.groups if (name := published_name(g.benchmark)))
    if not names or section.short_road:  # the section's first line says why
        return [], ""
    data, official = section.groups[0].dataset.name, DATASETS[names[0]]
    if data != official:
        return [], (
            f"{code(data)} is not the data set of the published table ({code(official)}), so no "
            "published rows here."
        )
    changed = {name for e in section.entries for name in e.record.overrides} - _harmless(section)
    if changed:
        return [], (
            f"Settings that are not the preset's ({', '.join(map(code, sorted(changed)))}): no published rows "
            "here."
        )
    remark = (
        "Rows in italics are published, each under its source's own settings, which differ in "
        "places (costs, layers, searched rates); ours with the protocol below."
    )
    rows = published_rows((*names, *(BESIDE[name] for name in names if name in BESIDE)))
    ours = section.entries[0].record.engine == "torchvision"
    if section.verb == "detect" and ours and not all(row.elsewise for row in rows):
        remark += (
            " They were made with detectron2, with which torchvision's engine is shown to agree "
            "(docs/detection.md)."
        )
    return rows, remark


def _harmless(section: Section) -> set[str]:
    """Settings that published rows stand beside, whatever they are.

    An SVM's solvers are shown to agree, and the table names the layer, as published ones do. A
    detector's engines are shown to agree, another batch has its schedule scaled linearly, and a rate
    may be searched, as SimSiam's authors searched it per method.
    """
    if section.verb == "svm":
        return {"solver", "layers"}
    if section.verb != "detect":
        return set()
    rates = section.groups[0].protocol.get("lr")
    searched = isinstance(rates, list) and len(rates) > 1
    return {"engine", "batch_size"} | ({"lr", "holdout"} if searched else set())


def _bars(table: Table, backbones: Sequence[Backbone], name: str) -> list[str]:
    """The picture of a table of single classes, and what is in it."""
    rows = [b for b in backbones if any(b.row in c.cells for c in table.columns)]
    few = f"; the best {MOST_PAIRS} of {len(rows)} backbones" if len(rows) > MOST_PAIRS else ""
    cells = [c for column in table.columns for c in column.cells.values()]
    spread = "; lines: ± standard deviation over trials" * any(len(c.values) > 1 for c in cells)
    meaning = f"Classes by their mean over the backbones, the highest first{spread}{few}."
    return [f"![Bars of each class](plots/{name})", "", meaning, ""]


def bar_tables(section: Section, made: Layout) -> dict[str, Table]:
    """File name to table, of those that are drawn as bars."""
    tables = [table for table in made.tables if table.drawn and len(table.columns) > 1]
    return {f"classes-{section.anchor}-{n}.png": table for n, table in enumerate(tables, 1)}


def lowshot_name(section: Section) -> str:
    """The file of a section's low-shot curves."""
    return f"lowshot-{section.anchor}.png"


def precision_name(section: Section) -> str:
    """The file of a section's precision-recall curves."""
    return f"precision-{section.anchor}.png"


def _precision(section: Section, made: Layout) -> str:
    """What the lines of the precision-recall curves are."""
    count = Counter(map(row_of, section.entries))
    first = " of the first trial" * (max(count.values()) > 1)
    drawn = len({label for curves in made.precision.values() for label in curves})
    few = f"; {drawn} of {len(count)} backbones" if drawn < len(count) else ""
    return f"Precision{first} at each recall, mean over classes: solid at IoU 0.5, dashed at 0.75{few}."


def _curves(made: Layout) -> str:
    """What the lines and bands of the low-shot curves are."""
    rows = {row for cells in made.shots["mAP"].values() for row in cells}
    honest = any(made.shots.get("mAP_honest", {}).values()) and len(rows) <= MOST_PAIRS
    text = "Lines: mean, the cost best on test; bands: from the worst to the best sample of it"
    text += "; dashed and thin: mean, the cost honest" * honest
    few = f"; the best {MOST_CURVES} of {len(rows)} backbones" if len(rows) > MOST_CURVES else ""
    return f"{text}{few}."
