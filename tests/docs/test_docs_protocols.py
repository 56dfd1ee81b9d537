"""The pages of the protocols: current, whole, and every kind of comment where it belongs."""

import sys
from functools import cache

import pytest
from markdown_pages import ROOT

sys.path.insert(0, str(ROOT / "docs"))

import protocols
from preset_markdown import PAGES, linked
from preset_text import read_preset, source_of

pages = cache(protocols.pages)
PRESETS = {name: path for verb in PAGES.values() for name, path in verb.preset_files().items()}


def test_the_pages_are_current():
    folder = ROOT / "docs/protocols"
    written = {path.name: path.read_text("utf-8") for path in folder.glob("*")}
    old = {name for name, text in pages().items() if written.pop(name, "") != text}
    assert not old | set(written), "run `python docs/protocols.py`, and commit docs/protocols"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source_and_explains_every_number(name):
    opening, settings = read_preset(PRESETS[name].read_text("utf-8"))
    assert source_of(opening), (
        f'{PRESETS[name]}: no sentence after "Source: " in the opening comment'
    )
    bare = [s.name for s in settings if not s.why and not isinstance(s.value, str)]
    assert not bare, f"{PRESETS[name]}: no comment beside {', '.join(bare)}"


def test_comments_belong_to_their_settings():
    text = """\
# What it is. Source: a/
# b.py, see
#   list  of files
# after it.
one: 1  # beside
# above
# two
two: "a # b"   # really
three: [1,
        2]     # of the list
               # that goes on
four:
  - x  # first
  - y
five:          # of all
  a: 1
  # above b
  b: {c: 2}    # b's
  d: null
six: 'it''s'
"""
    opening, settings = read_preset(text)
    assert opening[2] == "  list  of files"
    assert source_of(opening) == "a/b.py, see after it"
    assert [(s.name, s.value, s.why) for s in settings] == [
        ("one", 1, "beside"),
        ("two", "a # b", "above two really"),
        ("three", [1, 2], "of the list that goes on"),
        ("four", ["x", "y"], "first"),
        ("five.a", 1, "of all"),
        ("five.b.c", 2, "above b b's"),
        ("five.d", None, "of all"),
        ("six", "it's", ""),
    ]


def test_comments_are_escaped_and_linked():
    assert linked("a|b [x] _base_/y_z.py <i> 2*3*4") == r"a\|b \[x\] \_base\_/y_z.py \<i\> 2\*3\*4"
    assert linked("`a|b`") == r"`a\|b`"  # GitHub's tables take the backslash away, in code too
    assert linked("(arXiv 2011.10566)") == "([arXiv 2011.10566](https://arxiv.org/abs/2011.10566))"
    assert linked("as voc07-svm, not voc07-svm-x") == (
        "as [voc07-svm](svm.md#voc07-svm), not voc07-svm-x"
    )
    github = "https://github.com/facebookresearch"
    assert linked("simsiam#13") == f"[simsiam#13]({github}/simsiam/issues/13)"
    assert linked("facebookresearch/moco@132aea9.") == (
        f"[facebookresearch/moco@132aea9]({github}/moco/tree/132aea9)."
    )


def test_every_setting_of_the_protocol_is_on_the_page():
    """In the preset or at its default: nothing that defines a result is left out."""
    text = pages()["linear.md"].split("## in1k-linear-lars-90e\n")[1].split("\n## ")[0]
    for name, _ in protocols.defaults(PAGES["linear"], "in1k-linear-lars-90e"):
        assert f"| `{name}` |" in text
    assert "| SimSiam | 100 | 68.1 | Chen & He 2021" in text
