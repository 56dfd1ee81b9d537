"""Reading many records: several processes check them, one makes the objects."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from siambench.errors import UserError
from siambench.record import Metric, Record, make_record, read_fields

MANY = 1000  # records from which more processes are worth their start
_BATCH = 125
_MOST_PROCESSES = 8

# Of a batch: each record's fields, the numbers of its metrics' heads and their values, or what is wrong
# with it; and the heads. Far quicker to send than the objects.
Packed = tuple[list[tuple[dict[str, Any], list[int], list[float]] | str], list[Metric]]


def read_records(paths: Sequence[Path]) -> Iterator[Record | str]:
    """Each file's record, checked as :func:`siambench.record.read_record` does, or why it is none."""
    processes = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    batches = [paths[i : i + _BATCH] for i in range(0, len(paths), _BATCH)]
    known: dict[str, Metric] = {}
    if len(paths) < MANY or processes < 2:
        for batch in batches:
            yield from _unpacked(_packed(batch), known)
        return
    context = multiprocessing.get_context("fork")  # nothing has to be imported again
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for packed in pool.map(_packed, batches):
            yield from _unpacked(packed, known)


def _packed(paths: Sequence[Path]) -> Packed:
    heads: dict[int, tuple[int, Metric]] = {}  # by id: equal ones are one object
    records: list[tuple[dict[str, Any], list[int], list[float]] | str] = []
    for path in paths:
        try:
            body, own, values = read_fields(path)
        except (UserError, OSError) as error:
            records.append(str(error))
            continue
        for head in own:
            if id(head) not in heads:
                heads[id(head)] = (len(heads), head)
        records.append((body, [heads[id(head)][0] for head in own], values))
    return records, [head for _, head in heads.values()]


def _unpacked(packed: Packed, known: dict[str, Metric]) -> Iterator[Record | str]:
    """The records of a batch; ``known`` makes equal heads of all batches one object."""
    records, found = packed
    heads = [known.setdefault(repr((h.name, h.unit, h.split, h.params)), h) for h in found]
    for item in records:
        if isinstance(item, str):
            yield item
        else:
            body, numbers, values = item
            yield make_record(body, [heads[number] for number in numbers], values)
