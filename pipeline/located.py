"""A YAML file whose every key knows its line, for messages that say where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siambench.config import read_yaml
from siambench.errors import UserError

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Located:
    """A file's content and where each part of it stands.

    Attributes:
        path: the file.
        content: as ``yaml.safe_load`` gives it.
        lines: place, e.g. ``("benchmarks", 2, "k")``, to line, from 1.
    """

    path: Path
    content: Any
    lines: dict[Place, int]

    def where(self, *place: str | int) -> str:
        """``FILE:LINE: benchmarks[2].k``; the line of the nearest part around it that has one."""
        line = next((n for i in range(len(place), 0, -1) if (n := self.lines.get(place[:i]))), 1)
        name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
        return f"{self.path}:{line}" + (f": {name}" if name else "")


def read_located(path: Path) -> Located:
    """Read a YAML file.

    Raises:
        UserError: it is absent, not YAML, or has one key twice; the message has file and line.
    """
    content = read_yaml(path)
    node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    lines: dict[Place, int] = {}
    try:
        if node is not None:
            _walk(path, node, (), lines)
    except RecursionError:
        raise UserError(
            f"{path}: something in it contains itself, or it is nested too deeply"
        ) from None
    return Located(path, content, lines)


def _walk(path: Path, node: yaml.Node, place: Place, lines: dict[Place, int]) -> None:
    """Note the lines of all below ``node``; what a ``<<`` brings has the line where it was written."""
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            lines.setdefault((*place, number), child.start_mark.line + 1)
            _walk(path, child, (*place, number), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, child in node.value:  # `<<` last: what is said here goes before what it brings
        if key.value in seen:
            raise UserError(f"{path}:{key.start_mark.line + 1}: {key.value} is said twice here")
        seen.add(key.value)
        if key.tag != "tag:yaml.org,2002:merge":
            lines.setdefault((*place, key.value), key.start_mark.line + 1)
            _walk(path, child, (*place, key.value), lines)
    for key, child in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            for merged in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                _walk(path, merged, place, lines)
