"""Detections as both engines return them and predictions.json keeps them."""

from typing import Any

# One detection as COCO's result files have it: image_id (VOC: the file's stem), category_id, bbox
# (x, y, width, height in px of the original image), score and, with masks, segmentation (run lengths).
Result = dict[str, Any]
