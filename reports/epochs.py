"""Which backbones show what more pre-training brings: one method and architecture, several epochs."""

from collections.abc import Sequence

from reports.overview import Headline
from reports.rows import Backbone

Points = list[tuple[float, float, float]]  # epochs, mean, standard deviation over trials
Lines = dict[str, Points]
Panels = list[tuple[str, Lines]]  # title, and "SimSiam, resnet50" to its points

MORE_EPOCHS = (
    "### What more pre-training brings",
    "",
    "![Headline metrics by epochs of pre-training](plots/epochs.png)",
    "",
    "Headline metrics, %, of backbones of one method and architecture that differ in epochs; bars: "
    "standard deviation over trials.",
)


def epoch_panels(columns: Sequence[Headline], backbones: Sequence[Backbone]) -> Panels:
    """A panel per headline metric in which two backbones of one method and architecture differ in epochs.

    Several backbones with equal epochs stay points of their own, in the order of the rows.

    Args:
        columns: the headline metrics.
        backbones: of which those that say their method and epochs count.
    """
    panels = []
    for column in columns:
        lines: Lines = {}
        for b in backbones:
            cell = column.cells.get(b.row)
            epochs = _number(b.epochs)
            if cell and b.method and epochs is not None:
                point = (epochs, cell.mean, cell.std)
                lines.setdefault(f"{b.method}, {b.arch}", []).append(point)
        lines = {
            name: sorted(points, key=lambda point: point[0])
            for name, points in lines.items()
            if len({epochs for epochs, *_ in points}) > 1
        }
        if lines:
            panels.append((f"{column.benchmark}\n{column.column.header}", lines))
    return panels


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None
