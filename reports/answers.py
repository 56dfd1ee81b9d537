"""What a benchmark said of each image: pictures, and files of answers."""

import os
from collections.abc import Sequence
from html import escape as attribute
from pathlib import Path
from urllib.parse import quote

from reports.collect import Entry
from reports.markdown import escape, pipe_table, relative, summary
from reports.rows import Backbone
from reports.sections import Section
from reports.stats import Row, row_of
from siambench.files import atomic_path

SHOWN = 3  # pictures in a row; more rows are folded away
# verb: picture, file of predictions, and what they are
_CLASSES = (
    "confusion",
    "predictions.csv",
    "Which class is taken for which",
    "Answers image by image",
)
_FILES = {
    "linear": _CLASSES,
    "knn": _CLASSES,
    "detect": (
        "detections",
        "predictions.json",
        "Detections beside the ground truth of some test images",
        "All detections",
    ),
    "segment": (
        "segmentation",
        "confusion.csv",
        "Predicted labels beside the ground truth of some val images",
        "Confusion matrices",
    ),
}


def answers(section: Section, given_by: str, backbones: Sequence[Backbone], out: Path) -> list[str]:
    """Pictures of what was answered, a copy of each beside the report, and links to files of answers.

    They lie in the jobs folder beside the records' one. What is not there is passed over.

    Args:
        section: of the linear probe, kNN, detection or segmentation; others have none.
        given_by: the layer, or k and T, that gave the answers; or ``""``.
        backbones: in the order of the rows.
        out: the report's file.
    """
    if section.verb not in _FILES:
        return []
    what, predictions, title, meaning = _FILES[section.verb]
    entries: dict[Row, list[Entry]] = {}
    for entry in section.entries:
        entries.setdefault(row_of(entry), []).append(entry)
    pictures: list[tuple[str, str]] = []
    files = []
    for b in backbones:
        own = entries.get(b.row, [])
        copy = out.parent / "plots" / f"{what}-{section.anchor}-{len(pictures) + 1}.png"
        if own and _copied(job_folder(own[0]) / f"{what}.png", copy):
            pictures.append((b.label, f"plots/{copy.name}"))
        if links := _predictions(own, predictions, out.parent):
            files.append(f"{escape(b.label)} {links}")
    by = [given_by] if given_by else []
    first = ["first trial"] if any(len(own) > 1 for own in entries.values()) else []
    folded = len(pictures) > SHOWN or section.verb in ("detect", "segment")
    lines = _gallery(pictures, what, title + _in_brackets(by + first), folded)
    if files:
        lines += [
            f"{meaning}, {predictions}{_in_brackets(list(map(escape, by)))}: {', '.join(files)}.",
            "",
        ]
    return lines


def _in_brackets(words: list[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def job_folder(entry: Entry) -> Path:
    """The folder that the record's job left beside the records' one; it may be gone."""
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


def _predictions(entries: list[Entry], name: str, folder: Path) -> str:
    """A link per trial."""
    paths = [(n, job_folder(entry) / name) for n, entry in enumerate(entries, 1)]
    links = [f"[{n}]({quote(relative(p, folder))})" for n, p in paths if os.path.isfile(p)]
    return " ".join(links)


def _gallery(pictures: list[tuple[str, str]], what: str, caption: str, folded: bool) -> list[str]:
    """Small pictures, ``SHOWN`` in a row."""
    if not pictures:
        return []
    lines = []
    for start in range(0, len(pictures), SHOWN):
        part = pictures[start : start + SHOWN]
        shown = [
            f'<a href="{path}"><img src="{path}" width="280" '
            f'alt="{what.title()} of {attribute(label)}"></a>'
            for label, path in part
        ]
        cells = [cell.replace("|", "&#124;") for cell in shown]
        lines += [*pipe_table([escape(label) for label, _ in part], [cells], left=SHOWN), ""]
    if folded:
        return [summary(caption), "", *lines, "</details>", ""]
    return [f"{escape(caption)}:", "", *lines]
