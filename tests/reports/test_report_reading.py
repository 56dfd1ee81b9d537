"""Reading at a large report's pace: the same records, the same refusals, the same report."""

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_records as made
import numpy as np
import pytest
from test_report_numbers import tables

from reports import drawing, reading
from reports import report as room
from reports.report import write_report
from siambench.errors import UserError
from siambench.files import canonical_json, digest_of
from siambench.record import Metric, read_record

Change = Callable[[dict[str, Any]], object]


def number(metric: str, value: Any) -> Change:
    return lambda body: body["metrics"][0].__setitem__(metric, value)


def param(value: Any) -> Change:
    return lambda body: body["metrics"][0]["params"].__setitem__("k", value)


CHANGES: dict[str, Change] = {
    "int for float": number("value", 50),
    "another number": number("value", 50.00000000000001),
    "bool for number": number("value", True),
    "text for number": number("value", "50.0"),
    "unit": number("unit", "percent"),
    "unit is a number": number("unit", 1),
    "split": number("split", "train"),
    "name is a number": number("name", 3),
    "1.0 for 1": param(1.0),
    "true for 1": param(True),
    "'1' for 1": param("1"),
    "a list": param([1]),
    "null": param(None),
    "one more param": lambda body: body["metrics"][0]["params"].update(z=1),
    "one more field": lambda body: body["metrics"][0].update(extra=1),
    "one field less": lambda body: body["metrics"][0].pop("unit"),
    "params no object": number("params", [["k", 1]]),
    "one metric less": lambda body: body["metrics"].pop(),
    "one metric twice": lambda body: body["metrics"].append(body["metrics"][0]),
    "other order": lambda body: body["metrics"].reverse(),
    "no metric": lambda body: body["metrics"].clear(),
    "a metric that is none": lambda body: body["metrics"].append(7),
    "protocol": lambda body: body["protocol"].update(epochs=91),
    "seed": lambda body: body.update(seed=1.0),
    "nothing": lambda body: None,
}


# No records, whatever their digest says.
NO_RECORD = {
    *("text for number", "name is a number", "one more field", "one field less"),
    *("bool for number", "unit is a number"),
    *("params no object", "no metric", "a metric that is none", "protocol", "seed"),
}


def record_file(folder: Path) -> Path:
    metrics = [Metric("top1", 50.0, split="val", params={"k": 1, "T": 0.07})]
    metrics += [
        Metric('é"\\', -0.0, "", "τ", {"class": "naïve\n", "deep": {"b": [1.5], "a": None}})
    ]
    metrics += [Metric("many", 7, params={}), Metric("tiny", 5e-324, params={"k": 1e22})]
    return made.save(folder, made.record("in1k-knn", "a", metrics))


@pytest.mark.parametrize("resigned", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_refused_is_what_the_digest_of_all_says(
    tmp_path: Path, name: str, resigned: bool
) -> None:
    path = record_file(tmp_path)
    read_record(path)  # whatever is remembered of it must not let the changed one pass
    body = json.loads(path.read_text())
    before = copy.deepcopy(body)
    CHANGES[name](body)
    if resigned:
        body["digest"] = digest_of({k: v for k, v in body.items() if k != "digest"})
    path.write_text(json.dumps(body))
    same = canonical_json(body) == canonical_json(before)
    rest = {k: v for k, v in body.items() if k != "digest"}
    signed = body["digest"] == digest_of(rest)
    assert signed == (resigned or same)
    if not (same or (resigned and name not in NO_RECORD)):
        with pytest.raises(UserError):
            read_record(path)
        return
    record = read_record(path)
    for of in ("value", "params", "unit", "name"):
        found = [getattr(m, of) for m in record.metrics]
        assert str(found) == str([m[of] for m in body["metrics"]])  # 1, 1.0 and True differ


def test_the_digest_is_that_of_the_canonical_json_whatever_is_in_it(tmp_path: Path) -> None:
    rng = random.Random(0)
    scalars = [
        "a",
        "",
        "é|<\u2028",
        0,
        1,
        -1,
        1.0,
        1e300,
        0.1,
        True,
        False,
        None,
        [1, "x"],
        {"q": 2},
    ]
    for number_ in range(60):
        metrics = [
            Metric(
                rng.choice(["top1", "mAP", 'a"b']),
                rng.choice([1.5, -0.0, 3, 1e-9, 2**53 + 0.0]),
                rng.choice(["%", "", "C"]),
                rng.choice(["val", "test"]),
                {k: rng.choice(scalars) for k in rng.sample("abcd", rng.randint(0, 3))},
            )
            for _ in range(rng.randint(1, 8))
        ]
        protocol = {"metrics": rng.choice(scalars), "z": rng.choice(scalars)}
        rec = made.record("in1k-knn", f"n{number_}", metrics)
        rec = replace(rec, protocol=protocol, protocol_hash=digest_of(protocol))
        again = read_record(made.save(tmp_path, rec))  # written with digest_of of the whole
        assert again == rec
        assert str(again) == str(rec)


def test_several_processes_read_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.fill(tmp_path / "a", trials=4, backbones=("x", "y"))
    paths = sorted(tmp_path.glob("a/records/*.json"))
    paths[3].write_text("{}")
    paths[7].write_text(paths[7].read_text().replace('"trial": ', '"trial": 1'))
    paths[11].unlink()
    alone = list(reading.read_records(paths))
    monkeypatch.setattr(reading, "MANY", 1)
    monkeypatch.setattr(reading, "_BATCH", 5)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    together = list(reading.read_records(paths))
    assert together == alone
    assert [i for i, r in enumerate(alone) if isinstance(r, str)] == [3, 7, 11]
    whole = [r for r in together if not isinstance(r, str)]
    params = {id(m.params) for r in whole for m in r.metrics}
    distinct = {(m.name, m.split, m.unit, str(m.params)) for r in whole for m in r.metrics}
    assert len(params) == len(distinct)  # equal ones are one object


def test_a_large_report_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.fill(tmp_path, trials=2)
    made.monitor(tmp_path, "simsiam")
    write_report([tmp_path], tmp_path / "report.md")
    names = ["report.md", "report.html", *(f"plots/{p.name}" for p in tmp_path.glob("plots/*"))]
    small = {name: (tmp_path / name).read_bytes() for name in names}
    for path in tmp_path.glob("plots/*"):
        path.unlink()
    for module in (reading, room):
        monkeypatch.setattr(module, "MANY", 1)
    write_report([tmp_path], tmp_path / "report.md")
    assert {name: (tmp_path / name).read_bytes() for name in names} == small


def test_what_fails_beside_fails_here_too(tmp_path: Path) -> None:
    def draw() -> None:
        raise UserError("cannot write plots/x.png: disk full")

    ran = []
    with (
        pytest.raises(UserError, match="disk full"),
        drawing.meanwhile([draw, (tmp_path / "drawn").touch], apart=True),
    ):
        ran.append("text")
    assert ran == ["text"]
    assert (tmp_path / "drawn").exists()


def test_links_of_many_trials_are_listed_once(tmp_path: Path) -> None:
    made.fill(tmp_path, trials=9, backbones=("a", "b"), benchmarks=("in1k-knn",))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    (table,) = [t for (_, c), t in tables(text).items() if "kNN with T = 0.07" in c]
    targets = dict(re.findall(r"^\[(r\d+)\]: (\S+)$", text, re.M))
    lists = dict(re.findall(r'^- <a id="(t\d+)"></a>in1k-knn \S+: (.*)$', text, re.M))
    seen = set()
    for backbone, row in table.iterrows():
        for column in table.columns[1:]:
            (anchor,) = re.findall(r"<sup>\[9 trials\]\(#(t\d+)\)</sup>", row[column])
            refs = re.findall(r"\[\d\]\[(r\d+)\]", lists[anchor])
            records = [json.loads((tmp_path / targets[ref]).read_text()) for ref in refs]
            assert [r["trial"] for r in records] == list(range(9))
            assert {r["backbone"]["name"] for r in records} == {backbone}
            seen |= set(refs)
    assert seen == set(targets)
    html = (tmp_path / "report.html").read_text()
    for anchor in lists:
        assert html.count(f'<a id="{anchor}">') == 1
        assert f'<a href="#{anchor}">9 trials</a>' in html


def test_eight_trials_still_have_their_links_in_the_cell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for trial in range(8):
        made.save(tmp_path, made.record("in1k-knn", "a", made.knn(rng), trial=trial))
    text = write_report([tmp_path], tmp_path / "report.md").read_text()
    assert "[8][r8]</sup>" in text
    assert "### Trials" not in text
