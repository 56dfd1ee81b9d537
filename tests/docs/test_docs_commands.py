"""Every command, run file and piece of Python in the Markdown files is one that the code knows."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_pages import ROOT, Block, blocks

from pipeline.check import _PRESET_OF, _verb_of
from pipeline.config import RunConfig
from pipeline.jobs import lay_out
from pipeline.runfile import shipped
from pipeline.verbs import VERBS
from siambench.config import Verb, parse_args
from siambench.errors import UserError

BLOCKS = blocks()
DOTS = ("...", "…")
PLACEHOLDER = re.compile(r"\.\.\.|…|[A-Z][A-Z/.]*(?:\.yaml|\.safetensors)?")  # N, DIR, FILE.yaml
SHELLS = ("", "sh", "bash", "shell", "console")
ALWAYS = {"json", "quiet", "help", "print_config"}  # of every verb
# Of other programs, in a line.
OTHERS = {"--kill_on_invalid_dep"}
OURS = ("siambench", "python", "torchrun", "make")


def commands(text: str) -> Iterator[list[str]]:
    """The words of our commands in shell lines: without comments, brackets of what is optional, `$ `,
    variables in front, srun; pipelines taken apart, and lines that `\\` joins joined."""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^\s*(\$ )?((\w+=\S*|srun|time) +)*", "", line)
        if line.split(" ")[0] not in OURS and not re.search(r"[|&;] *(siambench|torchrun) ", line):
            continue
        parts = re.split(r"""('[^']*'|"[^"]*"| #.*)""", line)  # brackets in quotes are a list's
        parts = [p if n % 2 else re.sub(r"[][]", " ", p) for n, p in enumerate(parts)]
        words = shlex.shlex("".join(parts), posix=True, punctuation_chars="|&;")
        words.whitespace_split, words.commenters = True, "#"
        for split, part in groupby(words, lambda word: word in ("|", "||", "&&", "&", ";")):
            found = list(part)
            if not split and found[0] in OURS:
                yield found


def problem(words: list[str], whole: bool = True) -> str:
    """What is wrong with a command, or ``""``; of one that is not ``whole`` settings may be missing."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        wrong = [word for word in rest if "=" not in word and word not in targets]
        return f"make has no {wrong}" if wrong else ""
    if program == "siambench":
        return _problem_of_verb(rest, whole)
    if "-m" in rest:
        module, *rest = rest[rest.index("-m") + 1 :]
        if module in ("pytest", "venv", "pip") or PLACEHOLDER.fullmatch(module):
            return ""
        if module == "pipeline":
            return _problem_of_verb(rest, whole)
        path = ROOT.joinpath(*module.split("."))
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        text = file.read_text() if file.is_file() else ""
        verb = re.search(r'run_verb\(VERBS\["([^"]+)"\]', text)
        return _problem_of_verb([*verb[1].split(), *rest], whole) if verb else f"no module {module}"
    script = next((word for word in rest if word.endswith(".py")), "")
    return f"no {script}" if script and not (ROOT / script).is_file() else ""


def _problem_of_verb(words: list[str], whole: bool) -> str:
    if not words or words[0].startswith("-") or PLACEHOLDER.fullmatch(words[0]):
        return ""
    name = next((n for k in (3, 2, 1) if (n := " ".join(words[:k])) in VERBS), "")
    if not name:
        group = not whole and any(verb.startswith(f"{words[0]} ") for verb in VERBS)  # `data`
        return "" if group else f"siambench has no {words[0]!r}"
    verb = VERBS[name]
    try:
        arguments, left_out = _filled(verb, words[len(name.split()) :])
        if not whole or left_out:
            required = [f.name for f in fields(verb.config_class()) if _required(f)]
            arguments = [*(f"--{field}=-" for field in required), *arguments]
        config = parse_args(verb, arguments)
        if name in ("run", "plan"):
            known = config.file in shipped() or config.file.endswith(".yaml")
            assert known or re.fullmatch("[A-Z-]+", config.file), f"no run file {config.file!r}"
        if name == "data check" and config.name.islower():
            _verb_of(config, _PRESET_OF.get(config.name, config.name))
    except (UserError, AssertionError) as error:
        return str(error)
    return ""


def _required(field: Field[Any]) -> bool:
    return field.default is field.default_factory is MISSING


def _filled(verb: Verb, words: list[str]) -> tuple[list[str], bool]:
    """Arguments without what every verb takes and without flags whose value is left open (N, ...).

    Returns:
        the arguments, and whether `...` stood among them.
    """
    types = {field.name: field.type for field in fields(verb.config_class())}
    left_out = any(word in DOTS for word in words)
    kept: list[str] = []
    while words:
        word, *words = words
        if not word.startswith("--"):
            kept += [] if word in DOTS else [word]
            continue
        name = re.sub("-", "_", word[2:].partition("=")[0])
        if name in ALWAYS:
            continue
        first = name.partition(".")[0]
        assert first in types or name == "config", f"{verb.name} has no {word}"
        value = word.partition("=")[2] or next(iter(words), "")
        text = first in types and "str" in str(types[first])
        if name == "config" or (PLACEHOLDER.fullmatch(value) and (value in DOTS or not text)):
            words = words[0 if "=" in word else 1 :]
        else:
            kept.append(word)
    return kept, left_out


@pytest.mark.parametrize("block", [b for b in BLOCKS if not b.inline and b.language in SHELLS])
def test_every_command_parses(block):
    for words in commands(block.text):
        said = problem(words)
        assert not said, f"{block.where}: {shlex.join(words)}: {said}"


def test_every_command_in_a_line_is_one():
    found = ((b, words) for b in BLOCKS if b.inline for words in commands(b.text))
    wrong = [
        f"{b.where}: {b.text}: {p}" for b, words in found if (p := problem(words, whole=False))
    ]
    assert not wrong


OTHER_TOOLS = "docs/coming-from.md:"


def test_every_command_for_those_who_come_from_elsewhere_parses():
    """The right column of its tables: `VERB ...`, where ... is --backbone CKPT --data DIR."""
    given = "--backbone CKPT --data DIR"
    found = [b for b in BLOCKS if b.inline and b.where.startswith(OTHER_TOOLS)]
    lines = [b.text.replace("...", given) for b in found if b.text.split()[0] in VERBS]
    whole = [line for line in lines if "--preset" in line or "--k" in line]
    assert len(whole) > 25
    wrong = [(line, p) for line in whole if (p := problem(shlex.split(f"siambench {line}")))]
    assert not wrong


def test_every_flag_and_preset_in_a_line_is_known():
    """`--road cached` is some verb's, `voc07-svm` is a preset; one page is about other people's flags."""
    flags = {f"--{f.name}" for verb in VERBS.values() for f in fields(verb.config_class())}
    flags |= {f"--{name}" for name in ALWAYS} | {"--config", "--verb"} | OTHERS
    presets = {name for verb in VERBS.values() for name in verb.preset_files()} | {*shipped()}
    firsts = "|".join({name.partition("-")[0] for name in presets})
    wrong = []
    for block in BLOCKS:
        if not block.inline or block.where.startswith(OTHER_TOOLS):
            continue
        flag = re.match(r"--[\w-]+", block.text)
        if flag and flag[0].replace("-", "_").replace("__", "--", 1) not in flags:
            wrong.append(f"{block.where}: {block.text}")
        if re.fullmatch(rf"(?:{firsts})-[\w-]+", block.text) and block.text not in presets:
            wrong.append(f"{block.where}: {block.text}")
    assert not wrong


RUN_FILES = [
    b for b in BLOCKS if b.language == "yaml" and b.page.name in ("run-files.md", "cluster.md")
]


@pytest.mark.parametrize("block", RUN_FILES, ids=lambda block: block.where)
def test_every_run_file_is_one(block, tmp_path, monkeypatch):
    """As the plan checks it; its data and checkpoints are empty files here."""
    content = yaml.safe_load(block.text)
    whole = next(yaml.safe_load(b.text) for b in RUN_FILES if "backbones" in b.text)
    content = {**whole, **content}
    monkeypatch.chdir(tmp_path)
    for spec in content["backbones"].values():
        for name in {spec.get("checkpoint", ""), spec.get("backbone", "")} - {""}:
            Path(name.replace("/", "_")).touch()
    for entry in [*content["benchmarks"], {"data": "imagenet"}]:
        Path("data", entry["data"]).mkdir(parents=True, exist_ok=True)
    Path("run.yaml").write_text(yaml.safe_dump(content), "utf-8")
    run = lay_out(RunConfig(file="run.yaml", data="data"))
    assert len(run.jobs) >= len(content["backbones"]) * 5


def python_blocks() -> list[Block]:
    """Fences of Python, and indented blocks that begin with an import."""
    begins = re.compile(r"(from|import) [a-z]")
    return [
        b
        for b in BLOCKS
        if b.language == "python" or (b.language == "" and not b.inline and begins.match(b.text))
    ]


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.where)
def test_every_piece_of_python_compiles_and_its_names_exist(block):
    tree = ast.parse(block.text, block.where)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name: import_module(a.name) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), (
                    f"{block.where}: {node.module} has no {alias.name}"
                )
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            there = module is None or hasattr(module, node.attr)
            assert there, f"{block.where}: {node.value.id} has no {node.attr}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("siambench knn --backbone a --data d --preset in1k-knn  # --wrong", ""),
        ("siambench knn --backbone a --data d --prset in1k-knn", "knn has no --prset"),
        ("siambench knn --backbone a --data d --preset voc07-svm", "knn has no preset 'voc07-svm'"),
        ("siambench knn --backbone a --data d --skip-bad --k 10,20 | tee log", ""),
        ("siambench knn --backbone a --data d --k ten", "k"),
        ("siambench knn --backbone a", "data"),
        ("siambench knn --backbone ... --data ...", ""),
        ("siambench linear --backbone a \\\n  --data d --rod online", "linear has no --rod"),
        ("OMP_NUM_THREADS=1 srun siambench pretrain --data d --augment.crp 3", "crp"),
        ("torchrun --nproc-per-node 8 -m pretrain --data d --epoch 3", "pretrain has no --epoch"),
        ("torchrun --nproc-per-node 8 -m pretrian --data d", "no module pretrian"),
        ("python -m eval_linear.knn --data d --backbone b --kk 3", "knn has no --kk"),
        ("python -m eval_linear.nn --data d", "no module eval_linear.nn"),
        ("python benchmarks/none.py 3", "no benchmarks/none.py"),
        ("siambench data make digit-scene --out d", "siambench has no 'data'"),
        ("siambench data check voc2007 DIR", "voc2007"),
        ("siambench data check voc0712 DIR", ""),
        ("siambench run demoo --root DIR", "no run file 'demoo'"),
        ("siambench run FILE.yaml [--root DIR] [--data DIR]", ""),
        ("siambench run FILE.yaml [--rot DIR]", "run has no --rot"),
        ("siambench report DIR [DIR ...] [--order '[a,b,c]']", ""),
        ("siambench data make digit-scenes --out DIR [--images N]", ""),
        ("cd x && siambench rport DIR", "siambench has no 'rport'"),
        ("make dmo", "make has no"),
        ("ls --nonsense", ""),
    ],
)
def test_a_wrong_command_is_noticed(line, said):
    problems = [p for words in commands(line) if (p := problem(words))]
    assert said in "".join(problems)
    assert bool(problems) == bool(said)
