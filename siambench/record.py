"""The record: one JSON file per finished evaluation, whole and valid, or not there.

The schema is written down in docs/formats.md. ``digest`` is the SHA-256 of everything else in the
file, so that a number edited by hand is noticed.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from siambench.errors import UserError
from siambench.files import digest_of, existing, write_text

SCHEMA = "siambench-record"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a result.

    Attributes:
        name: as the literature prints it: ``top1``, ``mAP``, ``box_AP50``, ``mIoU``.
        value: finite.
        unit: ``"%"`` for all accuracies and precisions (0 to 100).
        split: the split it was measured on, e.g. ``"val"``, ``"test"``.
        params: what distinguishes it from its siblings, e.g. ``{"k": 20, "T": 0.07}``.
    """

    name: str
    value: float
    unit: str = "%"
    split: str = "test"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetInfo:
    """Which data an evaluation saw.

    Attributes:
        name: official name when the counts are the official ones, else the folder's own name.
        fingerprint: SHA-256 over root-relative paths, sizes and labels: equal wherever it lies.
        counts: images (and classes, boxes, skipped files ...) per split, e.g. ``{"train": 5011}``.
    """

    name: str
    fingerprint: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Record:
    """A finished evaluation; the attributes are the fields of the file.

    ``overrides`` names the protocol's settings that are not the preset's: with any, the result is
    not the published protocol's.
    """

    benchmark: str
    verb: str
    protocol: dict[str, Any]
    protocol_hash: str
    backbone: dict[str, Any]
    dataset: DatasetInfo
    seed: int
    trial: int
    engine: str
    metrics: list[Metric]
    seconds: float
    peak_memory_bytes: int
    software: dict[str, str]
    hardware: dict[str, Any]
    started: str
    overrides: list[str] = field(default_factory=list)
    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """Identity of the evaluation: see :func:`record_key`."""
        return record_key(
            self.benchmark,
            self.protocol_hash,
            self.backbone["sha256"],
            self.dataset.fingerprint,
            self.seed,
            self.trial,
        )

    @property
    def stem(self) -> str:
        """What the evaluation's files are called: its record, and its folder under ``jobs``."""
        return f"{self.benchmark}-{self.backbone['name']}-{self.key}"

    def metric(self, name: str, **params: Any) -> float:
        """The value of the one metric with this name and (at least) these params.

        Raises:
            KeyError: there is none, or more than one.
        """
        found = [
            m.value
            for m in self.metrics
            if m.name == name and all(m.params.get(k) == v for k, v in params.items())
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} metrics named {name!r} with {params}")
        return found[0]


def record_key(
    benchmark: str,
    protocol_hash: str,
    backbone_sha256: str,
    fingerprint: str,
    seed: int,
    trial: int,
) -> str:
    """Identity of an evaluation (16 hex digits): two with the same key would give the same result."""
    parts = [benchmark, protocol_hash, backbone_sha256, fingerprint, seed, trial]
    return digest_of(parts)[:16]


def record_path(out: str | Path, record: Record) -> Path:
    """Where a run folder has the record."""
    return Path(out) / "records" / f"{record.stem}.json"


def write_record(path: str | Path, record: Record) -> None:
    """Write ``record`` with its digest, atomically.

    Raises:
        ValueError: a metric is not finite: that is a failed evaluation, not a result.
    """
    problems = _problems(body := asdict(record))
    problems += [wrong for metric in body["metrics"] for wrong in _metric_problems(metric)]
    if problems:
        raise ValueError(f"not a valid record: {'; '.join(problems)}")
    write_text(path, json.dumps({**body, "digest": digest_of(body)}, indent=1) + "\n")


def read_record(path: str | Path) -> Record:
    """Read and validate a record.

    Raises:
        UserError: the file is absent, not JSON, not a record, of another schema version, incomplete,
            or its digest does not match its content.
    """
    body, heads, values = read_fields(path)
    return make_record(body, heads, values)


def make_record(body: dict[str, Any], heads: Sequence[Metric], values: Sequence[float]) -> Record:
    """A record from what :func:`read_fields` returns."""
    metrics = [
        Metric(head.name, value, head.unit, head.split, head.params)
        for head, value in zip(heads, values, strict=True)
    ]
    return Record(**{**body, "metrics": metrics, "dataset": DatasetInfo(**body["dataset"])})


def read_fields(path: str | Path) -> tuple[dict[str, Any], list[Metric], list[float]]:
    """As :func:`read_record`, without making the objects.

    Returns:
        The fields but the metrics; per metric one with its name, unit, split and params, the same object
        for equal ones; and their values.
    """
    try:
        with open(path, "rb") as handle:
            text = handle.read()
    except (FileNotFoundError, IsADirectoryError):
        existing(path, "record")
        raise
    try:
        return _checked(path, orjson.loads(text))
    except (
        orjson.JSONDecodeError,
        UserError,
        RecursionError,
    ):  # json has the last word: orjson's 2**64 is a float
        pass
    try:
        body = json.loads(text.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, NaN, nested too deeply
        raise UserError(f"{path} is not a record: {error}; delete it and run again") from None
    return _checked(path, body)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _checked(path: str | Path, body: Any) -> tuple[dict[str, Any], list[Metric], list[float]]:
    """As :func:`read_fields`, of a file's content."""
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise UserError(f"{path} is JSON but not a siambench record")
    if body.get("schema_version") != SCHEMA_VERSION:
        version = body.get("schema_version")
        raise UserError(f"{path}: record schema {version!r}; this version reads {SCHEMA_VERSION}")
    digest = body.pop("digest", None)
    try:
        problems = _problems(body)
        whole = problems or _has_digest(body, digest)
        heads, values = _read_metrics([] if problems else body.pop("metrics"), problems)
    except (ValueError, TypeError, OverflowError) as error:  # lone surrogates, ...
        raise UserError(f"{path} is not a record: {error}") from None
    if problems:
        raise UserError(f"{path} is not a whole record: {'; '.join(problems)}")
    if not whole:
        raise UserError(f"{path} was changed after it was written (its digest does not match)")
    return body, heads, values


def _has_digest(body: dict[str, Any], digest: Any) -> bool:
    """Whether :func:`siambench.files.digest_of` of ``body`` is ``digest``.

    orjson writes canonical JSON too, but for floats with an exponent (1e-5 where Python has 1e-05): where
    its digest is the one in the file that is proof enough, and quick.
    """
    try:
        text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        text = b""
    return hashlib.sha256(text).hexdigest() == digest or digest_of(body) == digest


# All of a metric but its value, as it was read before: thousands of records write the same few hundred,
# and a large report has one object for each of those.
_HEADS: dict[tuple[str, str, str, str], Metric] = {}
_MOST_HEADS = 1 << 16


def _read_metrics(listed: list[Any], problems: list[str]) -> tuple[list[Metric], list[float]]:
    """Head and value of each; their problems join ``problems``."""
    heads, values = [], []
    for written in listed:
        if wrong := _metric_problems(written):
            problems += wrong
            continue
        # repr tells 1 from 1.0 and from True, which are equal
        key = (written["name"], written["unit"], written["split"], repr(written["params"]))
        head = _HEADS.get(key)
        if head is None:
            if len(_HEADS) >= _MOST_HEADS:
                _HEADS.clear()
            head = _HEADS[key] = Metric(**written)
        heads.append(head)
        values.append(written["value"])
    return heads, values


_TYPES: dict[str, type | tuple[type, ...]] = {
    "benchmark": str,
    "verb": str,
    "protocol": dict,
    "protocol_hash": str,
    "backbone": dict,
    "dataset": dict,
    "seed": int,
    "trial": int,
    "engine": str,
    "metrics": list,
    "seconds": (int, float),
    "peak_memory_bytes": int,
    "software": dict,
    "hardware": dict,
    "started": str,
    "overrides": list,
    "schema": str,
    "schema_version": int,
}
_METRIC_FIELDS = {f.name for f in fields(Metric)}
_DATASET_FIELDS = {f.name for f in fields(DatasetInfo)}


def _problems(body: dict[str, Any]) -> list[str]:
    """Every way in which ``body``, without its digest and its metrics' fields, is not a record."""
    problems = [f"field {name!r} is missing" for name in _TYPES if name not in body]
    problems += [f"field {name!r} is unknown" for name in body if name not in _TYPES]
    for name, kind in _TYPES.items():
        if name in body and (not isinstance(body[name], kind) or isinstance(body[name], bool)):
            problems.append(f"field {name!r} is {type(body[name]).__name__}")
    if problems:
        return problems
    if body["protocol_hash"] != digest_of(body["protocol"]):
        problems.append("protocol_hash does not match protocol")
    if set(body["dataset"]) != _DATASET_FIELDS:
        problems.append(f"dataset must have {sorted(_DATASET_FIELDS)}")
    if not {"name", "sha256", "arch", "method", "epochs"} <= set(body["backbone"]):
        problems.append("backbone must name name, sha256, arch, method and epochs")
    if not body["metrics"]:
        problems.append("no metrics")
    return problems


def _metric_problems(metric: Any) -> list[str]:
    """Every way in which it is not a metric."""
    if not isinstance(metric, dict) or metric.keys() != _METRIC_FIELDS:
        return [f"metric {metric!r} must have {sorted(_METRIC_FIELDS)}"]
    if not isinstance(metric["params"], dict):
        return [f"metric {metric!r}: params must be an object"]
    if not all(isinstance(metric[name], str) for name in ("name", "unit", "split")):
        return [f"metric {metric!r}: name, unit and split must be text"]
    value = metric["value"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        return [f"metric {metric['name']} is {value}"]
    return []
