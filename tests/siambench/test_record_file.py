"""The record: whole, valid and untouched, or refused."""

import json
from dataclasses import replace

import pytest

from siambench.errors import UserError
from siambench.files import digest_of
from siambench.record import DatasetInfo, Metric, Record, read_record, record_key, write_record


@pytest.fixture
def record():
    protocol = {"k": [10, 20], "T": 0.07, "version": 1}
    return Record(
        benchmark="in1k-knn",
        verb="knn",
        protocol=protocol,
        protocol_hash=digest_of(protocol),
        backbone={"name": "a", "sha256": "0" * 64, "arch": "resnet50", "method": "x", "epochs": 1},
        dataset=DatasetInfo("digit-scenes", "f" * 64, {"train": 10, "val": 5}),
        seed=0,
        trial=0,
        engine="faiss",
        metrics=[Metric("top1", 50.25, split="val", params={"k": 20, "T": 0.07})],
        seconds=1.5,
        peak_memory_bytes=1000,
        software={"torch": "2"},
        hardware={"cpu": "x"},
        started="2026-01-01T00:00:00+00:00",
    )


def test_round_trip(record, tmp_path):
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json") == record
    assert record.metric("top1", k=20) == 50.25
    with pytest.raises(KeyError):
        record.metric("top1", k=21)


def test_an_edited_number_is_noticed(record, tmp_path):
    path = tmp_path / "r.json"
    write_record(path, record)
    path.write_text(path.read_text().replace("50.25", "60.25"))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("seed"), "'seed' is missing"),
        (lambda b: b.update(extra=1), "'extra' is unknown"),
        (lambda b: b.update(seed="0"), "'seed' is str"),
        (lambda b: b.update(metrics=[]), "no metrics"),
        (lambda b: b["metrics"][0].pop("unit"), "must have"),
        (lambda b: b["metrics"][0].update(value="high"), "top1 is high"),
        (lambda b: b["protocol"].update(T=0.2), "protocol_hash does not match"),
        (lambda b: b["backbone"].pop("sha256"), "backbone must name"),
        (lambda b: b["dataset"].pop("counts"), "dataset must have"),
        (lambda b: b.update(schema="other"), "not a siambench record"),
        (lambda b: b.update(schema_version=2), "record schema 2"),
    ],
)
def test_refuses_what_is_not_a_record(record, tmp_path, change, message):
    path = tmp_path / "r.json"
    write_record(path, record)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=message):
        read_record(path)


def test_nan_in_a_record_is_refused(record, tmp_path):
    path = tmp_path / "r.json"
    write_record(path, record)
    path.write_text(path.read_text().replace('"T": 0.07,', '"T": NaN,'))
    with pytest.raises(UserError, match=r"r\.json is not a"):
        read_record(path)


def test_nan_is_refused_even_under_the_digest_of_null(record, tmp_path):
    """orjson writes NaN as null: a digest of that must not let NaN pass."""
    path = tmp_path / "r.json"
    write_record(path, record)
    body = {**json.loads(path.read_text()), "seconds": None}
    body.pop("digest")
    text = json.dumps({**body, "digest": digest_of(body)})
    path.write_text(text.replace('"seconds": null', '"seconds": NaN'))
    with pytest.raises(UserError, match=r"NaN is no number"):
        read_record(path)


def test_whole_numbers_of_any_size_are_read(record, tmp_path):
    path = tmp_path / "r.json"
    big = replace(record, peak_memory_bytes=2**80)
    write_record(path, big)
    assert read_record(path) == big


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_refuses_what_is_not_json(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"r\.json"):
        read_record(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_written(record, tmp_path, value):
    bad = replace(record, metrics=[Metric("top1", value)])
    with pytest.raises(ValueError, match="top1"):
        write_record(tmp_path / "r.json", bad)
    assert list(tmp_path.iterdir()) == []


def test_key_depends_on_every_part():
    parts = ["b", "p", "s", "f", 0, 0]
    keys = {record_key(*parts)}
    for i, other in enumerate(["B", "P", "S", "F", 1, 1]):
        keys.add(record_key(*[other if j == i else p for j, p in enumerate(parts)]))
    assert len(keys) == 7
