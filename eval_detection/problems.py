"""Boxes that make no sense."""

import numpy as np

_SLACK = 1.0  # px a box may stick out: annotation tools round; it is clipped, as detectron2 does


def wrong_boxes(boxes: np.ndarray, sizes: np.ndarray) -> dict[int, str]:
    """What is wrong with each box that has no area or is not inside its image.

    Args:
        boxes: (N, 4), x0 y0 x1 y1 in px.
        sizes: (N, 2), height and width of its image in px; 0 where they are not known.

    Returns:
        Row to text.
    """
    corner, end = boxes[:, :2], boxes[:, 2:]
    limit = np.where(sizes > 0, sizes, np.inf)[:, ::-1] + _SLACK
    flat = ~(np.isfinite(boxes).all(1) & (end > corner).all(1))
    outside = (corner < -_SLACK).any(1) | (end > limit).any(1)
    found = {}
    for row in np.flatnonzero(flat | outside).tolist():
        height, width = sizes[row].tolist()
        shown = ", ".join(f"{v:g}" for v in boxes[row].tolist())
        why = "has no area" if flat[row] else f"is outside its image ({width} × {height} px)"
        found[row] = f"box ({shown}) {why}"
    return found
