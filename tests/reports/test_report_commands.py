"""The commands of a report, run through siambench's own parser: they give the protocol again."""

import random
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import made_records as made
import pytest

from pipeline.verbs import EVALUATIONS, VERBS
from reports.collect import Entry
from reports.commands import command
from reports.report import write_report
from reports.sections import Group
from siambench.config import EvaluationConfig, Verb, overridden, parse_args, protocol_of
from siambench.files import digest_of
from siambench.record import Metric, Record

CASES = [(name, preset) for name in EVALUATIONS for preset in ("", *VERBS[name].preset_files())]


def record_of(config: EvaluationConfig, verb: Verb, trial: int = 0) -> Record:
    """As the evaluation would write it, without evaluating."""
    protocol = {**protocol_of(config), "version": 3}
    protocol.setdefault("engine", "of ours")
    benchmark = config.preset or verb.name
    rec = made.record(benchmark, "net", [Metric("top1", 1.0)], verb=verb.name, trial=trial)
    return replace(
        rec,
        protocol=protocol,
        protocol_hash=digest_of(protocol),
        seed=config.seed + trial,
        engine=protocol["engine"],
        overrides=overridden(config, verb.name),
    )


def parsed(verb: Verb, line: str) -> Any:
    program, *words = shlex.split(line)
    assert program == "siambench"
    assert words[0] == verb.name
    return parse_args(verb, words[1:])


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_the_command_gives_the_protocol_again(name: str, preset: str) -> None:
    verb = VERBS[name]
    begin = ["--backbone", "b", "--data", "d", *(["--preset", preset] if preset else [])]
    base = parse_args(verb, begin)
    rng = random.Random(f"{name} {preset}")
    free = {f.name for f in fields(base) if "Literal" not in str(f.type)}
    settings = {k: v for k, v in protocol_of(base).items() if k in free}
    for _ in range(4):
        changed = {}
        for field in rng.sample(sorted(settings), min(5, len(settings))):
            value = settings[field]
            if isinstance(value, bool):
                changed[field] = not value
            elif isinstance(value, (int, float)):
                changed[field] = type(value)(value + 1)
            elif isinstance(value, (list, tuple)) and value:
                changed[field] = list(value)[: rng.randint(1, len(value))]
        config = replace(base, **changed, seed=5)
        group = Group([Entry(Path("x"), record_of(config, verb, t)) for t in range(3)])
        again = parsed(verb, command(group))
        assert protocol_of(again) == protocol_of(config)
        assert overridden(again, name) == overridden(config, name)
        assert (again.seed, again.trials, again.preset) == (5, 3, preset)


def test_a_preset_as_it_is_has_no_other_flag(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("a", "b"), benchmarks=("in1k-knn",))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    fence = text.split("### Commands")[1].split("~~~~~~sh\n")[1].split("\n~~~~~~")[0]
    about, line = fence.strip().split("\n")
    fingerprint = digest_of("digit-scenes")[:8]
    assert about == f"# in1k-knn on digit-scenes ({fingerprint}): a, b"
    assert line == "siambench knn --preset in1k-knn --backbone BACKBONE --data DATA"


def test_what_a_record_says_stays_in_its_word() -> None:
    rec = made.record("in1k-knn", "a", [Metric("top1", 1.0)], crop="$(rm -rf x)\n; ls `x`")
    line = command(Group([Entry(Path("x"), replace(rec, overrides=["crop"]))]))
    assert shlex.split(line)[-2:] == ["--crop", "$(rm -rf x) ; ls `x`"]
    assert "\n" not in line
