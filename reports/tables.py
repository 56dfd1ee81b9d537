"""What a section shows: tables of columns of cells, before they are text."""

from dataclasses import dataclass, field

import numpy as np

from reports.stats import Cells, Row
from reports.sweeps import Sweep

MOST_CURVES = 14  # curves in one plot that a reader can still follow
MOST_PAIRS = 7  # the same, where each has a second one


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        header: its text.
        cells: our numbers.
        published: the metric's name among the published numbers, or ``""``.
        upper: of a column of intervals the upper ends; ``cells`` are then the lower ones.
        spread: of means over samples what stands behind ±; None: the spread over trials.
        second: the numbers of a backbone's second line, in a table that has ``lines``.
        interval: the column of its 95 % intervals over the test images, where they were recorded.
    """

    header: str
    cells: Cells
    published: str = ""
    upper: Cells = field(default_factory=dict)
    spread: Cells | None = None
    second: "Column | None" = None
    interval: "Column | None" = None


@dataclass(frozen=True)
class Table:
    """A table of one section.

    Attributes:
        caption: the line above it.
        columns: one per metric, left to right.
        decimals: as the source prints; None for four significant digits.
        layers: best layer per backbone, where the table has such a column.
        bold: whether entries within 0.5 of a column's best are bold.
        folded: shown only when unfolded.
        lines: where a backbone has two lines, the header of the column that tells them apart, and
            what it says in the first (and of published rows) and in the second.
        distinct: cells show all their distinct values, as chosen costs do, not a mean.
        drawn: whether its columns, single classes, are shown as bars too.
    """

    caption: str
    columns: list[Column]
    decimals: int | None = 1
    layers: dict[Row, str] = field(default_factory=dict)
    bold: bool = True
    folded: bool = False
    lines: tuple[str, str, str] | None = None
    distinct: bool = False
    drawn: bool = False


@dataclass(frozen=True)
class Curve:
    """Precision against recall, mean over classes.

    Attributes:
        recall: (R,) rising, in [0, 1].
        precision: (2, R) in [0, 1], at IoU 0.5 and at 0.75.
    """

    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class Layout:
    """What is shown of a section.

    Attributes:
        tables: in order; those that are folded come after all others.
        headline: the columns that stand for the section in the first table of the report.
        shots: for the low-shot curves: ``mAP``, ``mAP_min``, ``mAP_max`` and ``mAP_honest`` to k to
            cells.
        sweeps: of a linear probe with several settings, one per layer.
        remarks: lines below the tables.
        answers: what the kept answers image by image were given by: a layer, or k and T.
        rates: of a detector's search: learning rate to box AP on the held-out part.
        ran: the learning rates that detectors then trained with, at their batch.
        precision: of the jobs' files: ``box`` and ``mask`` to the label of a backbone to its curve.
    """

    tables: list[Table]
    headline: list[Column]
    shots: dict[str, dict[int, Cells]] = field(default_factory=dict)
    sweeps: list[Sweep] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    answers: str = ""
    rates: dict[float, Cells] = field(default_factory=dict)
    ran: Cells = field(default_factory=dict)
    precision: dict[str, dict[str, Curve]] = field(default_factory=dict)
