"""``siambench report``: the records of run folders as Markdown, HTML, CSV and LaTeX, with plots."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from reports.body import section_text
from reports.collect import Collected, check_run_folder, collect
from reports.compare import Pair, comparison, find_pair
from reports.config import ReportConfig
from reports.drawing import drawing, meanwhile
from reports.epochs import MORE_EPOCHS, epoch_panels
from reports.formats import files_of, known_formats
from reports.layouts import layout
from reports.long import long_csv
from reports.markdown import Links
from reports.overview import Headline, headlines, monitor_table, overview
from reports.precision import precision_curves
from reports.provenance import how_made
from reports.reading import MANY
from reports.rows import Backbone, backbones_of, check_order
from reports.sections import Section, sections_of
from reports.states import States
from reports.stats import Metrics
from reports.tables import Layout
from siambench.errors import UserError
from siambench.files import write_text
from siambench.progress import say

Sections = list[tuple[Section, Layout]]


def run(config: ReportConfig) -> dict[str, str]:
    """The verb: write the report and say where it is.

    Raises:
        UserError: a folder does not exist or holds neither records nor training curves; an unknown
            format, or backbone to compare.
    """
    if not config.dirs:
        raise UserError("report: name at least one run folder, e.g. siambench report runs/demo")
    formats = known_formats(config.format)
    dirs = [Path(d) for d in config.dirs]
    for folder in dirs:
        check_run_folder(folder)
    out = Path(config.out or dirs[0] / "report.md")
    pair = config.compare if any(config.compare) else ()
    write_report(dirs, out, config.order, formats, pair, known_only=True)
    files = files_of(out, formats)
    for path in files.values():
        say(f"report: {path}")
    return {"report" if name == "md" else name: str(path) for name, path in files.items()}


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
def write_report(
    dirs: list[Path],
    out: Path,
    order: Sequence[str] = (),
    formats: Sequence[str] = ("md", "html"),
    compare: Sequence[str] = (),
    known_only: bool = False,
) -> Path:
    """Write the report of ``dirs`` beside or at ``out`` and its plots to ``plots/`` there.

    The same records (and jobs) give the same files, byte for byte. Damaged or edited records are left
    out, and named in the report and on standard error. Folders without any record make a report that
    says so.

    Args:
        dirs: run folders.
        out: the file; each format has its own ending.
        order: backbone names in the order of the rows; others follow by name.
        formats: of :data:`reports.formats.ENDINGS`; without md and html nothing is drawn.
        compare: names of two backbones, or none.
        known_only: refuse names in ``order`` that no record and no job has, instead of giving them a row.

    Returns:
        The file of the first format.

    Raises:
        UserError: a name to order or to compare is no backbone's.
    """
    files = files_of(out, formats)
    collected = collect(dirs)
    for left in collected.left_out:
        say(f"left out of the report: {left.path}: {left.reason}")
    states = States(collected.jobs)
    if known_only:
        check_order(order, collected.entries, states.backbones)
    backbones = backbones_of(collected.entries, order, states.backbones)
    pair = find_pair(compare, backbones) if compare else None
    if "csv" in files:
        write_text(files["csv"], long_csv(collected.entries, out.parent))
    if set(files) - {"csv"}:
        sections = _laid_out(collected, backbones)
        columns = headlines(sections, states)
        panels = epoch_panels(columns, backbones)
        draws = []
        if {"md", "html"} & files.keys():
            draws = drawing(collected, backbones, sections, panels, out.parent / "plots")
        with meanwhile(draws, apart=len(collected.entries) >= MANY):
            text = _markdown(collected, backbones, sections, columns, states, out, pair)
        if "md" in files:
            write_text(files["md"], text)
        if "html" in files:
            from reports.page import page  # a parser of Markdown: not for a CSV file

            write_text(files["html"], page(text, out.parent))
        if "latex" in files:
            from reports.latex import latex

            write_text(files["latex"], latex(text))
    return files[formats[0]]


def _laid_out(collected: Collected, backbones: Sequence[Backbone]) -> Sections:
    """Every section and what is shown of it."""
    sections = []
    for section in sections_of(collected.entries):
        made = layout(section.verb, Metrics(section.entries))
        made = replace(made, precision=precision_curves(section, made, backbones))
        sections.append((section, made))
    return sections


def _markdown(
    collected: Collected,
    backbones: Sequence[Backbone],
    sections: Sections,
    columns: Sequence[Headline],
    states: States,
    out: Path,
    pair: Pair | None,
) -> str:
    """The whole report."""
    links = Links(out.parent)
    lines = ["# Transfer report", ""]
    if collected.left_out:
        count = f"{len(collected.left_out)} damaged, edited or repeated records"
        lines += [f"Not in this report: {count}, [named at the end](#left-out).", ""]
    if columns:
        lines += ["## Which backbone is best", ""]
        lines += overview(backbones, columns, states, links)
    if epoch_panels(columns, backbones):
        lines += [*MORE_EPOCHS, ""]
    if pair:
        lines += comparison(pair, columns, sections, links)
    lines += _curves(collected)
    for section, made in sections:
        lines += section_text(section, made, backbones, states, links, out)
    lines += how_made(collected, backbones, [s for s, _ in sections], out.parent)
    lines += links.trials()
    return "\n".join([*lines, *links.definitions()]).rstrip() + "\n"


def _curves(collected: Collected) -> list[str]:
    """The lines that show the training curves."""
    if not collected.monitors:
        return []
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
