"""Writes docs/protocols/: a page per verb with presets, each number with its source, and their index.

Usage: python docs/protocols.py. All is taken from the presets: the comment that opens one is its text
(its first sentence says what it is, the sentence after "Source:" where it is from), and the comment
beside a setting, or above it in its column, says why. The published numbers are those of the reports.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder

from pipeline.verbs import VERBS
from reports.markdown import escape
from reports.published import BESIDE, PublishedRow, published_name, published_rows
from siambench.config import Verb, make_config

FOLDER = ROOT / "docs/protocols"
PAGES = {name: verb for name, verb in VERBS.items() if verb.presets}
PLACES = {name: page for page, verb in PAGES.items() for name in verb.preset_files()}
DATA = {"in1k": "imagenet/", "digits": "scenes/imagenet", "coco": "coco/", "inat18": "inat2018/"}
DATA |= {"places205": "places205/", "cityscapes": "cityscapes/"}  # of all others VOC/
NOTE = "<!-- Written by `python docs/protocols.py` from the presets: change those, and run it. -->"
_LINKS = re.compile(  # what the text of a comment leads to
    r"(?P<code>`[^`]+`)|arXiv (?P<arxiv>\d{4}\.\d{4,5})|docs/(?P<page>[\w-]+\.md)"
    r"|\b(?P<issues>simsiam|vicreg)#(?P<issue>\d+)"
    r"|\b(?P<repo>(?:facebookresearch|open-mmlab|lightly-ai)/\w+)"
    rf"|(?<![\w-])(?P<preset>{'|'.join(sorted(PLACES, key=len, reverse=True))})(?![\w-])"
)


@dataclass
class Setting:
    """A line of a preset: its dotted name, value, first line and column, last line, and comments."""

    name: str
    value: Any
    line: int
    column: int
    last: int
    above: "Setting | None" = None
    comments: list[str] = field(default_factory=list)

    @property
    def why(self) -> str:
        """Its comment, or that of the settings it is one of."""
        return " ".join(self.comments) or (self.above.why if self.above else "")


def read_preset(text: str) -> tuple[list[str], list[Setting]]:
    """The lines of the opening comment, and all settings with their comments, from YAML."""
    opening = list(takewhile(lambda line: line.startswith("#"), text.splitlines()))
    tokens = [t for t in yaml.scan(text) if t.end_mark.index > t.start_mark.index]
    ends = {t.end_mark.line: t.end_mark.column for t in tokens}
    found = list(_settings(yaml.compose(text), yaml.safe_load(text), "", None))
    for number, line in enumerate(text.splitlines()):
        start = line.find("#", ends.get(number, 0))
        if start < 0 or number < len(opening):
            continue
        owner = [s for s in found if s.line <= number][-1:]
        below = [s for s in found if s.line > number][:1]
        inside = number in ends or (owner and number <= owner[0].last)
        if not inside and below and below[0].column == start:
            owner = below
        owner[0].comments.append(line[start:].strip("# "))
    nested = {id(s.above) for s in found}
    return [line[1:].removeprefix(" ") for line in opening], [s for s in found if id(s) not in nested]


def _settings(node: yaml.Node, value: Any, prefix: str, above: Setting | None) -> Iterator[Setting]:
    for key, child in node.value:
        name = str(key.value)
        place = (key.start_mark.line, key.start_mark.column)
        setting = Setting(prefix + name, value[name], *place, _last(child), above)
        yield setting
        if isinstance(child, yaml.MappingNode):
            setting.last = setting.line
            yield from _settings(child, value[name], f"{prefix}{name}.", setting)


def _last(node: yaml.Node) -> int:
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.line
    return _last(node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1])


def linked(text: str) -> str:
    """A comment as Markdown: escaped, papers, repositories, issues, presets and pages as links."""
    parts, done = [], 0
    for match in _LINKS.finditer(text):
        word, kind = match[0], match.lastgroup
        to = {
            "arxiv": f"https://arxiv.org/abs/{match['arxiv']}",
            "page": f"../{match['page']}",
            "issue": f"https://github.com/facebookresearch/{match['issues']}/issues/{match['issue']}",
            "repo": f"https://github.com/{match['repo']}",
            "preset": f"{PLACES.get(word)}.md#{word}",
        }
        parts += [escape_part(text[done : match.start()])]
        parts += [word if kind == "code" else f"[{escape_part(word)}]({to[str(kind)]})"]
        done = match.end()
    return "".join([*parts, escape_part(text[done:])])


def escape_part(text: str) -> str:
    """As :func:`reports.markdown.escape`, but the spaces at both ends stay."""
    inner = text.strip()
    return text.replace(inner, escape(inner)) if inner else text


def sentence(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<!\.)(?<!e\.g)\.\s+(?=[A-Z])", " ".join(text.split()))[0].rstrip(".")


def opening_text(opening: list[str]) -> str:
    """The words of an opening comment without its indented lines."""
    return " ".join(line for line in opening if not line.startswith("  "))


def source(opening: list[str]) -> str:
    """The sentence after "Source:", or ``""``."""
    return sentence(re.split(r"\bSources?: ", opening_text(opening) + " ", maxsplit=1)[1:][-1:][0])


def shown(value: Any) -> str:
    """A value as YAML has it, as inline code."""
    if isinstance(value, str) and value:
        return f"`{value}`"
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        return f"`[{', '.join(value)}]`"
    return f"`{json.dumps(value)}`"


def table(header: list[str], rows: list[list[str]], numbers: slice = slice(0)) -> list[str]:
    """A Markdown table; the columns of ``numbers`` are aligned right."""
    rules = ["---"] * len(header)
    rules[numbers] = ["---:"] * len(rules[numbers])
    return [f"| {' | '.join(row)} |" for row in (header, rules, *rows)] + [""]


def help_of(config: type) -> dict[str, str]:
    """The first sentence of the help of every field, nested ones dotted."""
    found: dict[str, str] = {}
    for part in reversed([c for c in config.__mro__ if is_dataclass(c)]):
        told = parse(part.__doc__ or "").params
        found |= {p.arg_name: sentence(p.description or "") for p in told}
    for f in fields(config):
        if is_dataclass(f.type):
            found |= {f"{f.name}.{name}": text for name, text in help_of(f.type).items()}
    return found


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field."""
    for f in fields(config):
        value = getattr(config, f.name)
        nested = is_dataclass(value)
        yield from flat(value, f"{f.name}.") if nested else [(prefix + f.name, value)]


def preset_section(verb: Verb, name: str, text: str) -> list[str]:
    """A preset: what it is, its command, its settings, those at their defaults, published numbers."""
    opening, settings = read_preset(text)
    required = {f.name: "-" for f in fields(verb.config_class()) if f.default is f.default_factory is MISSING}
    config = make_config(verb, {"preset": name, **required})
    idle = config.idle() if hasattr(config, "idle") else set()
    return []
