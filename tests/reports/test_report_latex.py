"""report.tex, read by a small parser of LaTeX's structure, and compiled where there is a LaTeX."""

import re
import shutil
import subprocess
from pathlib import Path

import made_records as made
import numpy as np
import pytest
from test_report_numbers import number, tables

from reports.letters import escape
from reports.report import write_report
from siambench.record import write_record

# Of LaTeX's kernel and booktabs; anything else could be undefined.
COMMANDS = {
    *("documentclass", "usepackage", "setlength", "tabcolsep", "begin", "end", "clearpage"),
    *("section", "subsection", "centering", "footnotesize", "caption", "shortstack", "par"),
    *("medskip", "textbf", "textit", "texttt", "mathrm", "textbackslash", "textasciitilde"),
    *("textasciicircum", "textless", "textgreater", "textbar", "pm", "times", "surd", "cdot"),
    *("ge", "to", "dots", "ss", "ae", "o", "aa", "toprule", "midrule", "bottomrule"),
    *("u", "H", "v", "c"),
}
ODD = [r"a\b{c}$x$ #1 50% ~^_&", 'q"<|>`--[x]*', "é ü ñ ş 漢 µ", "{", "\\\\[2em]", "[3pt]"]


def report(folder: Path, **options: list[str]) -> str:
    out = write_report([folder], folder / "r.md", formats=("latex",), **options)
    assert sorted(p.suffix for p in folder.glob("r.*")) == [".tex"]
    return out.read_text()


def check(text: str) -> None:
    """Braces and environments close in order, commands are known, no special character is bare."""
    assert text.isascii()
    text = text[text.index(r"\begin{document}") :]  # what stands before is the same in all
    stack: list[str] = []
    math = False
    for token in re.findall(r"\\(?:[A-Za-z]+|.)(?:\{\w+\})?|[{}$&#%~^_]|\n\n", text, re.S):
        command = re.match(r"\\([A-Za-z]+)", token)
        if token.startswith((r"\begin{", r"\end{")):
            name = token[token.index("{") + 1 : -1]
            if token.startswith(r"\begin"):
                stack.append(name)
            else:
                assert stack.pop() == name
        elif command:
            assert command[1] in COMMANDS, token
        elif token == "{":
            stack.append("{")
        elif token == "}":
            assert stack.pop() == "{"
        elif token == "$":
            math = not math
        elif token == "&":
            assert stack[-1] == "tabular"
        elif token == "^":
            assert math
        elif token == "\n\n":
            assert not math
            assert "{" not in stack
        else:
            assert token[0] == "\\", token  # # % ~ _ bare
    assert stack == []
    assert not math


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX on this machine")
@pytest.mark.parametrize("name", ["simsiam", *ODD])
def test_it_compiles_and_no_table_leaves_the_page(tmp_path: Path, name: str) -> None:
    made.fill(tmp_path, trials=2, backbones=(name, "supervised"))
    report(tmp_path)
    words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "r.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="latin-1")
    assert done.returncode == 0, done.stdout[-2000:]
    wide = [float(points) for points in re.findall(r"Overfull .hbox \(([\d.]+)pt", done.stdout)]
    assert max(wide, default=0) < 20  # of a caption; tables were 200 too wide once


def tabulars(text: str) -> list[list[list[str]]]:
    """Rows of cells of each tabular; each has as many cells as the tabular has columns."""
    found = []
    for sides, body in re.findall(
        r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.S
    ):
        assert body.split()[0] == r"\toprule"
        assert body.split()[-1] == r"\bottomrule"
        rows = [line[:-3] for line in body.split("\n") if line.endswith(r" \\")]
        cells = [re.split(r"(?<!\\) & ", row) for row in rows]
        assert {len(row) for row in cells} == {len(sides)}
        found.append(cells)
    return found


def test_the_numbers_are_those_of_the_markdown(tmp_path: Path) -> None:
    made.fill(tmp_path, trials=3, official=True)
    text = report(tmp_path)
    check(text)
    markdown = write_report([tmp_path], tmp_path / "report.md", formats=("md",)).read_text()
    expected = []
    for (heading, caption), table in tables(markdown).items():
        if "<summary>" in caption or heading.split()[0] in ("Backbones", "Data"):
            continue
        for cell in table.to_numpy().ravel():
            if re.match(r"(\*\*)?[−+]?[\d.]+( |\*\*|$)", cell):
                mean, std, bold = number(cell.replace("−", "-").replace(" ⚠", ""))
                expected.append((mean, std, bold))
    found = []
    for rows in tabulars(text):
        for row in rows[1:]:
            for cell in row[1:]:
                plain = re.sub(r"\\text(bf|it)\{|\}|\$\^\{!", "", cell).replace("$-$", "-")
                if match := re.match(r"([-+]?[\d.]+)(?: \$\\pm\$ ([\d.]+))?[$ ]*$", plain):
                    std = float(match[2]) if match[2] else None
                    found.append((float(match[1]), std, r"\textbf" in cell))
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert len(found) > 300


def test_published_rows_are_in_italics_with_their_sources_below(tmp_path: Path) -> None:
    made.fill(tmp_path, official=True, benchmarks=("voc12aug-fcn-20k",))
    text = report(tmp_path)
    check(text)
    (table,) = [t for t in tabulars(text) if "mean accuracy" in t[0]]
    ours, published = table[1:4], table[4:]
    assert len(published) > 3
    assert all(cell.startswith(r"\textit{") for row in published for cell in row if cell)
    assert not any(r"\textit" in cell for row in ours for cell in row)
    assert r"\textit{46.11 $^{!}$}" in [row[2] for row in published]
    assert re.search(r"\\par \$\^\{\\mathrm\{a\}\}\$ published: ", text)
    assert text.count(r"\midrule") == len(tabulars(text)) + 1


def test_wide_tables_go_on_below(tmp_path: Path) -> None:
    made.fill(tmp_path)
    found = [t for t in tabulars(report(tmp_path)) if "full SVM" in t[0]]
    (first,) = found
    assert len(first[0]) <= 3 + 6
    ks = [c for t in tabulars(report(tmp_path)) for c in t[0] if re.fullmatch(r"k=\d+", c)]
    assert {f"k={k}" for k in made.KS} <= set(ks)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_text(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    for number_, who in enumerate((name, "plain")):
        rec = made.record("in1k-knn", who, made.knn(rng), dataset=name)
        rec.backbone["method"] = name
        write_record(tmp_path / "records" / f"{number_}.json", rec)
    text = report(tmp_path)
    check(text)
    rows = [row for table in tabulars(text) for row in table[1:]]
    assert all(not row[0].startswith(("[", "*")) for row in rows)


def test_letters() -> None:
    assert escape("50% of a_b & c") == r"50\% of a\_b \& c"
    assert escape("é–ü") == r"\'{e}--\"{u}"
    assert escape("a--b") == "a-{}-b"
    assert escape("-3") == "$-$3"
    assert escape("漢") == "U+6F22"
    assert escape("\\") == r"\textbackslash{}"
