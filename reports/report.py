"""``siambench report``: report.md, and the plots beside it, from the records of run folders."""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reports.collect import Collected, check_run_folder, collect
from reports.config import ReportConfig
from reports.layouts import MOST_CURVES, Layout, layout
from reports.markdown import Links, code, escape, metric_table
from reports.overview import monitor_table, overview
from reports.provenance import how_made, protocol_details
from reports.published import DATASETS, PublishedRow, published_name, published_rows
from reports.rows import Backbone, backbones_of
from reports.sections import Section, sections_of
from reports.stats import Metrics, row_of
from siambench.errors import UserError
from siambench.files import write_text
from siambench.progress import say


def run(config: ReportConfig) -> dict[str, str]:
    """The verb: write the report and say where it is.

    Raises:
        UserError: a folder does not exist or holds neither records nor training curves.
    """
    if not config.dirs:
        raise UserError("report: name at least one run folder, e.g. siambench report runs/demo")
    dirs = [Path(d) for d in config.dirs]
    for folder in dirs:
        check_run_folder(folder)
    path = write_report(dirs, Path(config.out or dirs[0] / "report.md"), config.order)
    say(f"report: {path}")
    return {"report": str(path)}


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Records make no cycles, and looking for some takes a quarter of the time of a large report."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_gc_paused()
def write_report(dirs: list[Path], out: Path, order: list[str] | None = None) -> Path:
    """Write the report of ``dirs`` to ``out`` and its plots to ``plots/`` beside it.

    The same records give the same file, byte for byte. Damaged or edited records are left out, and
    named in the report and on standard error. Folders without any record make a report that says so.

    Args:
        dirs: run folders.
        out: the Markdown file.
        order: backbone names in the order of the rows; others follow by name.

    Returns:
        ``out``.
    """
    collected = collect(dirs)
    for left in collected.left_out:
        say(f"left out of the report: {left.path}: {left.reason}")
    backbones = backbones_of(collected.entries, order or [])
    sections = [(s, layout(s.verb, Metrics(s.entries))) for s in sections_of(collected.entries)]
    links = Links(out.parent)
    lines = ["# Transfer report", ""]
    if collected.left_out:
        count = f"{len(collected.left_out)} damaged, edited or repeated records"
        lines += [f"Not in this report: {count}, [named at the end](#left-out).", ""]
    if sections:
        lines += ["## Which backbone is best", "", *overview(backbones, sections, links)]
    lines += _plots(collected, backbones, sections, out.parent / "plots")
    for section, made in sections:
        lines += _section(section, made, backbones, links)
    lines += how_made(collected, backbones, [s for s, _ in sections], out.parent)
    write_text(out, "\n".join([*lines, *links.definitions()]).rstrip() + "\n")
    return out


def _plots(
    collected: Collected,
    backbones: Sequence[Backbone],
    sections: Sequence[tuple[Section, Layout]],
    folder: Path,
) -> list[str]:
    """Draw what there is to draw; the lines that show the training curves.

    Low-shot curves are shown by their sections.
    """
    from reports.plots import plot_lowshot, plot_monitors, style_of  # matplotlib takes a second

    styles = style_of(list(dict.fromkeys([*(b.label for b in backbones), *collected.monitors])))
    for section, made in sections:
        if made.shots.get("mAP"):
            path = folder / _lowshot_name(section)
            plot_lowshot(path, made.shots, backbones, styles)
    if not collected.monitors:
        return []
    plot_monitors(folder / "pretrain.png", collected.monitors, styles)
    return [
        "## Pre-training",
        "",
        "![Loss, std of the output and kNN accuracy by epoch](plots/pretrain.png)",
        "",
        "std is that of the L2-normalised projector output, mean over channels: 1/√d without "
        "collapse, near 0 with it. The last epoch of each run:",
        "",
        *monitor_table(collected.monitors),
    ]


def _lowshot_name(section: Section) -> str:
    return f"lowshot-{section.anchor}.png"


def _only(made: Layout) -> str:
    rows = {row for cells in made.shots["mAP"].values() for row in cells}
    return f"; the best {MOST_CURVES} of {len(rows)} backbones" if len(rows) > MOST_CURVES else ""


def _section(
    section: Section, made: Layout, backbones: Sequence[Backbone], links: Links
) -> list[str]:
    lines = [
        f'<a id="{section.anchor}"></a>',
        "",
        f"## {section.title}",
        "",
        _facts(section, backbones),
        "",
    ]
    rows, remark = _published(section)
    for table in made.tables:
        same = [row for row in rows if not row.elsewise]
        text = metric_table(table, backbones, same, links)
        if table.folded:
            summary = f"<details><summary>{escape(table.caption)}</summary>"
            lines += [summary, "", *text, "", "</details>", ""]
        else:
            lines += [f"{table.caption}:", "", *text, ""]
        others = [row for row in rows if row.elsewise]
        other_table = metric_table(table, [], others, links)
        if other_table:
            lines += ["Published with another engine or protocol, so not in the table above:", ""]
            lines += [*other_table, ""]
    if remark:
        lines += [remark, ""]
    if made.shots.get("mAP"):
        lines += [f"![Low-shot mAP against k](plots/{_lowshot_name(section)})", ""]
        lines += ["Lines: mean; bands: from the worst to the best sample" + _only(made) + ".", ""]
    return [*lines, *protocol_details(section)]


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
    if not names:
        return [], ""
    data, official = section.groups[0].dataset.name, DATASETS[names[0]]
    if data != official:
        return [], (
            f"{code(data)} is not the data set of the published table ({code(official)}), so no "
            "published rows here."
        )
    changed = sorted({name for e in section.entries for name in e.record.overrides})
    if changed:
        return [], (
            f"Settings that are not the preset's ({', '.join(map(code, changed))}): no published rows "
            "here."
        )
    return published_rows(names), (
        "Rows in italics are published, each under its source's own settings, which differ in "
        "places (costs, layers, searched rates); ours with the protocol below."
    )
