"""``siambench report``: report.md, and the plots beside it, from the records of run folders."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from reports.body import lowshot_name, precision_name, section_text
from reports.collect import Collected, check_run_folder, collect
from reports.config import ReportConfig
from reports.layouts import layout
from reports.markdown import Links
from reports.overview import monitor_table, overview
from reports.precision import precision_curves
from reports.provenance import how_made
from reports.rows import Backbone, backbones_of
from reports.sections import Section, sections_of
from reports.stats import Metrics
from reports.tables import Layout
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
    sections = []
    for section in sections_of(collected.entries):
        made = layout(section.verb, Metrics(section.entries))
        made = replace(made, precision=precision_curves(section, made, backbones))
        sections.append((section, made))
    links = Links(out.parent)
    lines = ["# Transfer report", ""]
    if collected.left_out:
        count = f"{len(collected.left_out)} damaged, edited or repeated records"
        lines += [f"Not in this report: {count}, [named at the end](#left-out).", ""]
    if sections:
        lines += ["## Which backbone is best", "", *overview(backbones, sections, links)]
    lines += _plots(collected, backbones, sections, out.parent / "plots")
    for section, made in sections:
        lines += section_text(section, made, backbones, links, out)
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

    Low-shot and precision-recall curves are shown by their sections.
    """
    from reports.plots import (  # matplotlib takes a second
        plot_lowshot,
        plot_monitors,
        plot_precision,
        style_of,
    )

    styles = style_of(list(dict.fromkeys([*(b.label for b in backbones), *collected.monitors])))
    for section, made in sections:
        if made.shots.get("mAP"):
            path = folder / lowshot_name(section)
            plot_lowshot(path, made.shots, backbones, styles)
        if made.precision:
            plot_precision(folder / precision_name(section), made.precision, styles)
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
