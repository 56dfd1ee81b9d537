"""What a report draws, and drawing it while the text is made."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from reports.body import bar_tables, lowshot_name, precision_name
from reports.collect import Collected
from reports.epochs import Panels
from reports.rows import Backbone
from reports.sections import Section
from reports.tables import Layout

Draw = Callable[[], None]


def drawing(
    collected: Collected,
    backbones: Sequence[Backbone],
    sections: Sequence[tuple[Section, Layout]],
    panels: Panels,
    folder: Path,
) -> list[Draw]:
    """A call for each plot there is, which writes its file into ``folder``."""
    from reports.bars import drawn, plot_classes, plot_epochs
    from reports.plots import (  # matplotlib takes a second
        plot_lowshot,
        plot_monitors,
        plot_precision,
        style_of,
    )

    draws: list[Draw] = []
    styles = style_of(list(dict.fromkeys([*(b.label for b in backbones), *collected.monitors])))
    for section, made in sections:
        if made.shots.get("mAP"):
            path = folder / lowshot_name(section)
            draws.append(partial(plot_lowshot, path, made.shots, backbones, styles))
        if made.precision:
            path = folder / precision_name(section)
            draws.append(partial(plot_precision, path, made.precision, styles))
        for name, table in bar_tables(section, made).items():
            classes = {column.header: column.cells for column in table.columns}
            rows = drawn(classes, [(b.row, b.label) for b in backbones])
            draws.append(partial(plot_classes, folder / name, classes, rows, styles))
    if collected.monitors:
        path = folder / "pretrain.png"
        draws.append(partial(plot_monitors, path, collected.monitors, styles))
    if panels:
        of_lines = style_of(list(dict.fromkeys(name for _, lines in panels for name in lines)))
        draws.append(partial(plot_epochs, folder / "epochs.png", panels, of_lines))
    return draws


@contextmanager
def meanwhile(draws: Sequence[Draw], apart: bool) -> Iterator[None]:
    """Draw before the body, or ``apart``, in two processes beside it; all is drawn at the end."""
    if not apart:
        _all(draws)
        yield
        return
    context = multiprocessing.get_context("fork")
    parts = [list(draws)[0::2], list(draws)[1::2]]
    processes = [context.Process(target=_all, args=(part,)) for part in parts]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.join()
    for process, part in zip(processes, parts, strict=True):
        if process.exitcode:
            _all(part)  # it fails here too, with its error


def _all(draws: Sequence[Draw]) -> None:
    for draw in draws:
        draw()
