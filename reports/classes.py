"""A folded table of single classes, or the remark that they are too many for one."""

from typing import Any

from reports.stats import Metrics
from reports.tables import Column, Table

MOST_CLASSES = 80  # COCO's


def class_table(
    metrics: Metrics,
    name: str,
    params: tuple[tuple[str, Any], ...],
    caption: str,
    what: str,
    drawn: bool = False,
) -> Table | str:
    """A column per class, or, of more than ``MOST_CLASSES``, one line that says where they are.

    Args:
        metrics: of the section.
        name: of the metric of a class.
        params: what it has beside the class.
        caption: of the table.
        what: the metric, as the line calls it.
        drawn: whether there are bars too.
    """
    classes = metrics.parts(name, params)
    if len(classes) > MOST_CLASSES:
        return f"{what} of each class: {len(classes):,} are too many for a table; they are in the records."
    columns = [Column(c, cells) for c, cells in classes.items()]
    return Table(caption, columns, folded=True, drawn=drawn)
