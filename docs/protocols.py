"""Writes docs/protocols/: a page per verb with presets, each number with its source, and their index.

Usage: python docs/protocols.py. All is taken from the presets: the comment that opens one is its text
(its first sentence says what it is, the one after "Source:" where it is from), the comment beside a
setting, or above it in its column, says why. The published numbers are those of the reports.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from docstring_parser import parse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

from preset_markdown import PAGES, linked, shown, table
from preset_text import prose, read_preset, sentence, source_of

from pretrain.config import RUNTIME_FIELDS
from reports.markdown import escape
from reports.published import BESIDE, published_name, published_rows
from siambench.config import EvaluationConfig, Verb, make_config, protocol_of

# What stands behind --data in a command, by the preset's first word; of all others VOC/.
DATA = {"in1k": "imagenet/", "digits": "scenes/imagenet", "coco": "coco/", "inat18": "inat2018/"}
DATA |= {"places205": "places205/", "cityscapes": "cityscapes/"}
NOTE = "<!-- Written by `python docs/protocols.py` from the presets: change those, and run it. -->"
RECORD = "[record](../formats.md#the-record-one-json-file-per-finished-evaluation)"
ABOUT = f"""A setting is overridden by its flag, and the {RECORD} then says so. Presets with different
numbers are different benchmarks: their results do not compare. [All presets](README.md)."""
INDEX = f"""Every preset, what it repeats and where its numbers are from. In a paper, give its name,
siambench's version and what was overridden: the {RECORD} has them, and a hash of all settings."""


def help_of(config: type) -> dict[str, str]:
    """The first sentence of the help of every field, nested ones dotted."""
    found: dict[str, str] = {}
    for part in filter(is_dataclass, reversed(config.__mro__)):
        found |= {p.arg_name: sentence(p.description or "") for p in parse(part.__doc__).params}
    for f in filter(lambda f: is_dataclass(f.type), fields(config)):
        found |= {f"{f.name}.{name}": text for name, text in help_of(f.type).items()}
    return found


def defaults(verb: Verb, preset: str) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of what defines the result, as it stands under the preset."""
    required = [
        f.name for f in fields(verb.config_class()) if f.default is f.default_factory is MISSING
    ]
    config = make_config(verb, {**dict.fromkeys(required, "-"), "preset": preset})
    evaluates = isinstance(config, EvaluationConfig)
    names = protocol_of(config) if evaluates else {*vars(config)} - RUNTIME_FIELDS
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from ((f"{name}.{inner}", v) for inner, v in vars(value).items())
        elif name in names:
            yield name, value


def published(preset: str) -> list[str]:
    """The published numbers that reports put beside the preset's, then those they keep apart."""
    name = published_name(preset)
    rows = published_rows((name, BESIDE.get(name, name))) if name else []
    lines = []
    for apart, title in ((False, "Published"), (True, "Published with another engine or protocol")):
        some = [row for row in rows if row.elsewise == apart]
        metrics = list(dict.fromkeys(metric for row in some for metric in row.values))
        heads = [re.sub(r"_([kT])(?=\d)", r" \1=", metric).replace("_", " ") for metric in metrics]
        cells = [
            [escape(row.method), row.epochs, *(row.values.get(metric, "") for metric in metrics)]
            + [linked(text) for text in (row.source, "; ".join(row.notes))]
            for row in some
        ]
        header = ["method", "epochs", *heads, "source", "note"]
        lines += [f"{title}, in %:", "", *table(header, cells, range(1, len(heads) + 2))] * bool(
            some
        )
    return lines


def section(page: str, verb: Verb, name: str, text: str) -> list[str]:
    """A preset: what it is, its command, its settings, those at their defaults, published numbers."""
    opening, settings = read_preset(text)
    lines = [f"## {name}", ""]
    for is_list, part in groupby(opening, lambda line: line.startswith("  ")):
        block = list(part)
        lines += [*([f"    {line}" for line in block] if is_list else [linked(prose(block))]), ""]
    data = f"--data {DATA.get(name.partition('-')[0], 'VOC/')}"
    place = f"{data} --out runs/{name}" if page == "pretrain" else f"--backbone BACKBONE {data}"
    lines += ["```sh", f"siambench {page} --preset {name} {place}", "```", ""]
    rows = [[f"`{s.name}`", shown(s.value), linked(s.why)] for s in settings]
    lines += table(["setting", "value", "why"], rows)
    told, said = help_of(verb.config_class()), {s.name for s in settings}
    left = [(field, value) for field, value in defaults(verb, name) if field not in said]
    rows = [[f"`{field}`", shown(value), linked(told[field])] for field, value in left]
    lines += [f"<details><summary>At their defaults: {len(rows)} settings</summary>", ""]
    return [
        *lines,
        *table(["setting", "default", "what"], rows),
        "</details>",
        "",
        *published(name),
    ]


def pages() -> dict[str, str]:
    """Name of a file in docs/protocols to its text."""
    found, index = {}, []
    for page, verb in PAGES.items():
        folder = verb.presets.replace(":", "/")
        texts = {n: path.read_text("utf-8") for n, path in sorted(verb.preset_files().items())}
        lines = [NOTE, "", f"# Protocols of `siambench {page}`", ""]
        lines += [
            f"The presets in [{folder}](../../{folder}), each number with its source.",
            ABOUT,
            "",
        ]
        for name, text in texts.items():
            opening, _ = read_preset(text)
            what = linked(sentence(prose(opening)))
            lines += [f"- [{name}](#{name}): {what}"]
            index += [[f"[{name}]({page}.md#{name})", page, what, linked(source_of(opening))]]
        lines += ["", *(line for n, text in texts.items() for line in section(page, verb, n, text))]
        found[f"{page}.md"] = "\n".join(lines).rstrip() + "\n"
    rows = table(["preset", "verb", "what", "source"], index)
    found["README.md"] = "\n".join([NOTE, "", "# Protocols", "", INDEX, "", *rows])
    return found


if __name__ == "__main__":
    for file, text in pages().items():
        (ROOT / "docs/protocols" / file).write_text(text, encoding="utf-8")
