"""What a linear probe or kNN said of each image: pictures of confusion, and the files of answers."""

import os
from collections.abc import Sequence
from html import escape as attribute
from pathlib import Path
from urllib.parse import quote

from reports.collect import Entry
from reports.markdown import escape, pipe_table, relative
from reports.rows import Backbone
from reports.sections import Section
from reports.stats import Row, row_of
from siambench.files import atomic_path

SHOWN = 3  # pictures in a row; more rows are folded away


def answers(section: Section, given_by: str, backbones: Sequence[Backbone], out: Path) -> list[str]:
    """The pictures of confusion, a copy of each beside the report, and links to the predictions.

    They lie in the jobs folder beside the records' one. What is not there is passed over.

    Args:
        section: of the linear probe or kNN; others have none.
        given_by: the layer, or k and T, that gave the answers; or ``""``.
        backbones: in the order of the rows.
        out: the report's file.
    """
    if section.verb not in ("linear", "knn"):
        return []
    entries: dict[Row, list[Entry]] = {}
    for entry in section.entries:
        entries.setdefault(row_of(entry), []).append(entry)
    pictures: list[tuple[str, str]] = []
    files = []
    for b in backbones:
        own = entries.get(b.row, [])
        copy = out.parent / "plots" / f"confusion-{section.anchor}-{len(pictures) + 1}.png"
        if own and _copied(_job(own[0]) / "confusion.png", copy):
            pictures.append((b.label, f"plots/{copy.name}"))
        if links := _predictions(own, out.parent):
            files.append(f"{escape(b.label)} {links}")
    by = [escape(given_by)] if given_by else []
    first = ["first trial"] if any(len(own) > 1 for own in entries.values()) else []
    lines = _confusions(pictures, "Which class is taken for which" + _in_brackets(by + first))
    if files:
        what = "Answers image by image, predictions.csv" + _in_brackets(by)
        lines += [f"{what}: {', '.join(files)}.", ""]
    return lines


def _in_brackets(words: list[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def _job(entry: Entry) -> Path:
    return entry.path.parent.parent / "jobs" / entry.path.stem


def _copied(source: Path, copy: Path) -> bool:
    """Copy a picture; whether it was there and could be read."""
    try:
        content = source.read_bytes()
    except OSError:
        return False
    with atomic_path(copy) as temporary:
        temporary.write_bytes(content)
    return True


def _predictions(entries: list[Entry], folder: Path) -> str:
    """A link per trial."""
    paths = [(n, _job(entry) / "predictions.csv") for n, entry in enumerate(entries, 1)]
    links = [f"[{n}]({quote(relative(p, folder))})" for n, p in paths if os.path.isfile(p)]
    return " ".join(links)


def _confusions(pictures: list[tuple[str, str]], caption: str) -> list[str]:
    """Small pictures, ``SHOWN`` in a row."""
    if not pictures:
        return []
    lines = []
    for start in range(0, len(pictures), SHOWN):
        part = pictures[start : start + SHOWN]
        shown = [
            f'<a href="{path}"><img src="{path}" width="280" '
            f'alt="Confusion of {attribute(label)}"></a>'
            for label, path in part
        ]
        cells = [cell.replace("|", "&#124;") for cell in shown]
        lines += [*pipe_table([escape(label) for label, _ in part], [cells], left=SHOWN), ""]
    if len(pictures) > SHOWN:
        return [f"<details><summary>{caption}</summary>", "", *lines, "</details>", ""]
    return [f"{caption}:", "", *lines]
