"""Which records may stand in one table: one preset, one protocol, one engine, one data set."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from reports.collect import Entry
from reports.markdown import code, escape
from reports.published import DATASETS, published_name
from siambench.record import DatasetInfo

TITLES = {
    "linear": "Linear probe",
    "knn": "kNN",
    "svm": "Linear SVM",
    "detect": "Detection",
    "segment": "Segmentation",
}


@dataclass(frozen=True)
class Group:
    """Records that differ only in backbone and trial."""

    entries: list[Entry]

    @property
    def benchmark(self) -> str:
        """The preset's name."""
        return self.entries[0].record.benchmark

    @property
    def verb(self) -> str:
        """The command that made the records."""
        return self.entries[0].record.verb

    @property
    def dataset(self) -> DatasetInfo:
        """The data they were made on."""
        return self.entries[0].record.dataset

    @property
    def protocol(self) -> dict[str, Any]:
        """Every setting."""
        return self.entries[0].record.protocol

    @property
    def protocol_hash(self) -> str:
        """Its digest."""
        return self.entries[0].record.protocol_hash

    @property
    def short_road(self) -> bool:
        """Whether a linear probe was trained on cached features: a protocol of its own."""
        return self.verb == "linear" and self.protocol.get("road") == "cached"

    @property
    def left_out(self) -> dict[str, str]:
        """Classes that have no part in the numbers, and why."""
        metrics = self.entries[0].record.metrics
        found = [m.params for m in metrics if m.name == "left_out"]
        return {str(p.get("class")): str(p.get("why", "")) for p in found}

    def has(self, param: str) -> bool:
        """Whether a metric of the records has this parameter."""
        return any(param in m.params for m in self.entries[0].record.metrics)


@dataclass(frozen=True)
class Section:
    """What one heading of the report covers.

    Attributes:
        title: the heading.
        anchor: its HTML id.
        groups: one; or the full and the low-shot SVM of one data set, whose numbers are different
            columns of one published table.
        siblings: other protocols of the same preset, each in a section of its own.
        incomparable: links to sections of the same task by another protocol.
    """

    title: str
    anchor: str
    groups: list[Group]
    siblings: list[Group]
    incomparable: list[str] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        """All records of the section."""
        return [entry for group in self.groups for entry in group.entries]

    @property
    def verb(self) -> str:
        """The command that made the records."""
        return self.groups[0].verb

    @property
    def short_road(self) -> bool:
        """As :attr:`Group.short_road`."""
        return self.groups[0].short_road


def sections_of(entries: list[Entry]) -> list[Section]:
    """Group records into sections, in the order of the source papers' benchmarks, then by name."""
    groups = _paired(_groups(entries))
    titles = [_title(parts) for parts in groups]
    sections = []
    for number, (parts, title) in enumerate(zip(groups, titles, strict=True), 1):
        if titles.count(title) > 1:
            engine = escape(parts[0].entries[0].record.engine)
            protocol, data = parts[0].protocol_hash[:8], parts[0].dataset.fingerprint[:8]
            title += f" ({engine}, protocol {protocol}, data {data})"
        siblings = [g for other in groups if other is not parts for g in other if _kin(g, parts)]
        sections.append(Section(title, f"s{number}", parts, siblings))
    return [replace(s, incomparable=_other_networks(s, sections)) for s in sections]


def output_stride(group: Group) -> int:
    """Of a segmentation network; records of the first versions knew 8 alone."""
    return int(group.protocol.get("output_stride", 8))


def _other_networks(section: Section, sections: list[Section]) -> list[str]:
    """Of segmentation: links to the sections whose network has another stride."""
    if section.verb != "segment":
        return []
    stride = output_stride(section.groups[0])
    return [
        f"[{code(s.groups[0].benchmark)}](#{s.anchor})"
        for s in sections
        if s.verb == "segment" and output_stride(s.groups[0]) != stride
    ]


def _groups(entries: list[Entry]) -> list[Group]:
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        r = entry.record
        place = (_place(r.verb, TITLES), _place(published_name(r.benchmark), DATASETS), r.benchmark)
        data = (r.dataset.name, r.dataset.fingerprint)
        road = r.protocol.get("road") == "cached"  # after the papers'
        found.setdefault((*place, road, *data, r.protocol_hash, r.engine), []).append(entry)
    order = [found[key] for key in sorted(found)]
    return [Group(sorted(e, key=lambda x: (x.record.seed, x.record.trial))) for e in order]


def _place(name: str, known: Iterable[str]) -> int:
    order = list(known)
    return order.index(name) if name in order else len(order)


def _paired(groups: list[Group]) -> list[list[Group]]:
    """Each group alone, but a full and a low-shot SVM together where the pair is unambiguous.

    They then have one engine, one data set, the same classes and the same settings of what both have.
    """
    paired: list[list[Group]] = []
    for group in groups:
        kin = [g for g in groups if g.verb == group.verb == "svm" and _measures_as(g, group)]
        full = [g for g in kin if not g.has("k")]
        low = [g for g in kin if g.has("k")]
        if len(full) != 1 or len(low) != 1:
            paired.append([group])
        elif group is full[0]:
            paired.append([full[0], low[0]])
    return paired


# What a full and a low-shot SVM differ in by their nature.
_OF_A_MODE = {"mode", "k", "samples", "negatives_per_positive", "costs", "layers"}


def _measures_as(one: Group, other: Group) -> bool:
    engines = [g.entries[0].record.engine for g in (one, other)]
    same = engines[0] == engines[1] and one.dataset == other.dataset
    protocols = [{k: v for k, v in g.protocol.items() if k not in _OF_A_MODE} for g in (one, other)]
    both = protocols[0].keys() & protocols[1].keys()
    same = same and all(protocols[0][k] == protocols[1][k] for k in both)
    return same and one.left_out.keys() == other.left_out.keys()


def _kin(group: Group, parts: list[Group]) -> bool:
    return any(g.verb == group.verb and g.benchmark == group.benchmark for g in parts)


def _title(parts: list[Group]) -> str:
    kind = TITLES.get(parts[0].verb, escape(parts[0].verb)) + ", short road" * parts[0].short_road
    names = " and ".join(dict.fromkeys(code(g.benchmark) for g in parts))
    return f"{kind}: {names} on {escape(parts[0].dataset.name)}"


def differing_fields(groups: list[Group]) -> dict[str, list[Any]]:
    """Protocol fields whose values are not equal in all of ``groups``: one value per group."""
    names = sorted({name for group in groups for name in group.protocol})
    values = {name: [g.protocol.get(name, "–") for g in groups] for name in names}
    return {name: row for name, row in values.items() if any(v != row[0] for v in row)}
