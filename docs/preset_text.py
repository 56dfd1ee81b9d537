"""What a preset's file says beyond its values: its opening comment, and why each setting is what it is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import yaml


@dataclass
class Setting:
    """A setting and where it stands in the file, in lines and columns from 0.

    Attributes:
        name: dotted where it is nested, e.g. ``augment.crop``.
        value: as YAML reads it.
        line, column: of its key.
        last: the line in which its value ends.
        above: the mapping that it is nested in.
        comments: those beside it, in its lines or the next, and those above it in its own column.
    """

    name: str
    value: Any
    line: int
    column: int
    last: int
    above: "Setting | None" = None
    comments: list[str] = field(default_factory=list)

    @property
    def why(self) -> str:
        """Its comments, or else those of the mapping around it."""
        return " ".join(self.comments) or (self.above.why if self.above else "")


def read_preset(text: str) -> tuple[list[str], list[Setting]]:
    """The lines of the opening comment, and every setting that is no mapping of others."""
    opening = list(takewhile(lambda line: line.startswith("#"), text.splitlines()))
    tokens = [t for t in yaml.scan(text) if t.end_mark.index > t.start_mark.index]
    ends = {t.end_mark.line: t.end_mark.column for t in tokens}  # a # before that is no comment
    found = list(_settings(yaml.compose(text), yaml.safe_load(text)))
    for number, line in enumerate(text.splitlines()):
        start = line.find("#", ends.get(number, 0))
        if start < 0 or number < len(opening):
            continue
        before = [s for s in found if s.line <= number]
        after = [s for s in found if s.line > number]
        inside = number in ends or any(s.last > number for s in before)
        of_next = after and after[0].column == start and not inside
        owner = after[0] if of_next else next(s for s in before if s.line == before[-1].line)
        owner.comments.append(line[start:].strip("# "))
    mappings = {id(s.above) for s in found}
    return [line[1:].removeprefix(" ") for line in opening], [
        s for s in found if id(s) not in mappings
    ]


def _settings(
    node: yaml.Node, value: Any, prefix: str = "", above: Setting | None = None
) -> Iterator[Setting]:
    for key, child in node.value:
        place = key.start_mark.line, key.start_mark.column
        inner = value[key.value]
        nested = isinstance(child, yaml.MappingNode)
        last = key.start_mark.line if nested else _last(child)
        yield (setting := Setting(prefix + key.value, inner, *place, last, above))
        if nested:
            yield from _settings(child, inner, f"{setting.name}.", setting)


def _last(node: yaml.Node) -> int:
    """The line in which a value ends; a block's own end mark is after the blank lines below it."""
    block = isinstance(node, yaml.SequenceNode) and not node.flow_style
    return _last(node.value[-1]) if block else int(node.end_mark.line)


def prose(lines: list[str]) -> str:
    """Lines of a comment as one; a path that goes on in the next line is whole again."""
    return " ".join("\n".join(lines).replace("/\n", "/").split())


def sentence(text: str) -> str:
    """The first sentence, without its full stop."""
    return re.split(r"(?<!\.)(?<!e\.g)\.\s+(?=[A-Z])", " ".join(text.split()))[0].rstrip(".")


def source_of(opening: list[str]) -> str:
    """The sentence after "Source:" of an opening comment, or ``""``."""
    text = prose([line for line in opening if not line.startswith("  ")])
    return sentence(text.partition("Source: ")[2])
