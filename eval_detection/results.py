"""Detections as both engines return them and predictions.json keeps them."""

from typing import Any

from siambench.errors import UserError

# One detection as COCO's result files have it: image_id (VOC: the file's stem), category_id, bbox
# (x, y, width, height in px of the original image), score and, with masks, segmentation (run lengths).
Result = dict[str, Any]


class Diverged(UserError):
    """Training ended in a loss that is not finite; raised in every process alike."""
