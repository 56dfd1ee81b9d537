"""Detection transfer: Faster and Mask R-CNN C4 fine-tuned from a backbone, on VOC and COCO."""

from siambench.config import Verb

VERBS = {
    "detect": Verb(
        name="detect",
        help="Fine-tune Faster or Mask R-CNN from a backbone and measure AP, AP50 and AP75",
        config="eval_detection.config:DetectConfig",
        run="eval_detection.evaluate:run",
        presets="eval_detection:presets/detect",
        check="eval_detection.config:check_config",
        benchmark="eval_detection.evaluate:BENCHMARK",
    )
}
