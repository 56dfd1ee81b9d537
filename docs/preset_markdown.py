"""The parts of a protocol's page as Markdown: comments with links, values, tables."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from pipeline.verbs import VERBS
from reports.markdown import escape

PAGES = {name: verb for name, verb in VERBS.items() if verb.presets}
PLACES = {name: page for page, verb in PAGES.items() for name in verb.preset_files()}
_LINKS = re.compile(  # in an escaped comment
    r"\\`(?P<code>[^`]+)\\`|\barXiv (?P<arxiv>\d{4}\.\d{4,5})|\bdocs/(?P<page>[\w-]+\.md)"
    r"|\b(?P<issues>simsiam|vicreg)#(?P<issue>\d+)"
    r"|\b(?P<repo>(?:facebookresearch|open-mmlab|lightly-ai)/\w+)(?:@(?P<at>\w[\w.]*\w))?"
    rf"|(?<![\w-])(?P<preset>{'|'.join(sorted(PLACES, key=len, reverse=True))})(?![\w-])"
)


def linked(text: str) -> str:
    """A comment as Markdown: escaped, with links to papers, repositories, issues, presets, pages."""
    return _LINKS.sub(_link, escape(text))


def _link(found: re.Match[str]) -> str:
    github = "https://github.com"
    to = {
        "arxiv": f"https://arxiv.org/abs/{found['arxiv']}",
        "page": f"../{found['page']}",
        "issue": f"{github}/facebookresearch/{found['issues']}/issues/{found['issue']}",
        "repo": f"{github}/{found['repo']}",
        "at": f"{github}/{found['repo']}/tree/{found['at']}",
        "preset": f"{PLACES.get(found[0])}.md#{found[0]}",
    }
    return f"`{found['code']}`" if found["code"] else f"[{found[0]}]({to[str(found.lastgroup)]})"


def shown(value: Any) -> str:
    """A value as YAML has it, as inline code."""
    if isinstance(value, (list, tuple)) and any(isinstance(v, str) for v in value):
        return f"`[{', '.join(value)}]`"
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> list[str]:
    """A Markdown table and an empty line; the columns ``right`` are aligned right."""
    rules = ["---:" if n in right else "---" for n in range(len(header))]
    return [*(f"| {' | '.join(row)} |" for row in (header, rules, *rows)), ""]
