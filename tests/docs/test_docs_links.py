"""Every link of every Markdown file leads to a file, and every #anchor to a heading, as GitHub has them."""

import re
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_pages import PAGES, ROOT, anchors, anchors_of, blocks, links, plain_text, slug


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Try it", "try-it"),
        (
            "Linear SVMs on frozen features (siambench svm)",
            "linear-svms-on-frozen-features-siambench-svm",
        ),
        ("What agrees, and what cannot", "what-agrees-and-what-cannot"),
        ("A – B", "a--b"),
        ("mean ± std: 5 %", "mean--std-5-"),
        ("voc12aug-fcn16s-30k", "voc12aug-fcn16s-30k"),
        ("min_size_train", "min_size_train"),
        ("Über 3×3, naïve", "über-33-naïve"),
        ("x² and ½", "x-and-"),
        ("日本語 の", "日本語-の"),
        ("in C++ / C#", "in-c--c"),
    ],
)
def test_slugs_are_githubs(heading, expected):
    assert slug(heading) == expected


def test_anchors_of_headings_with_markup_and_of_one_name():
    text = """
# A `code_span`, *emphasis* and [a link](there.md)

Setext
------

## Notes
### Notes
## Notes #
    # no heading
<a id="s1"></a> <a name='t2'>x</a>
"""
    found = anchors_of(MarkdownIt("commonmark").parse(text))
    assert found == {
        *("a-code_span-emphasis-and-a-link", "setext", "notes", "notes-1", "notes-2"),
        *("s1", "t2"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    wrong = []
    for target in links(page):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if path.startswith("/") or not file.is_relative_to(ROOT) or not file.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and file.suffix != ".md":
            wrong.append(f"{target}: an anchor in what is no Markdown")
        elif anchor and anchor not in anchors(file):
            wrong.append(f"{target}: {file.relative_to(ROOT)} has no heading for it")
    undefined = re.findall(r"\]\[[^\]]*\]", plain_text(page))
    assert not wrong + undefined, f"in {page.relative_to(ROOT)}: " + "; ".join(wrong + undefined)


def test_every_file_that_is_named_is_there():
    """`tests/convert/fuzz.py` and the like in code; * stands for anything."""
    rooms = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"]
    named = re.compile(rf"(?:{'|'.join(rooms)})/[\w./*-]+\.(?:py|md|yaml|csv|png|safetensors)")
    wrong = [
        f"{block.where}: {block.text}"
        for block in blocks()
        if named.fullmatch(block.text)
        and not any(ROOT.glob(block.text))
        and not block.where.startswith("docs/coming-from.md")  # other people's files
    ]
    assert not wrong
