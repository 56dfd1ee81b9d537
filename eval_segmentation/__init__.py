"""Semantic segmentation: an FCN on the backbone dilated to stride 8, on VOC 2012 aug or Cityscapes."""

from siambench.config import Verb

VERBS = {
    "segment": Verb(
        name="segment",
        help="Fine-tune an FCN for semantic segmentation (VOC 2012 aug, Cityscapes): mIoU",
        config="eval_segmentation.config:SegmentConfig",
        run="eval_segmentation.evaluate:run",
        presets="eval_segmentation:presets/segment",
        check="eval_segmentation.config:check_config",
        benchmark="eval_segmentation.evaluate:BENCHMARK",
    )
}
