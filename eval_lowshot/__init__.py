"""Linear SVMs on frozen features, VOC07 style: one per class, on all images or on k of them."""

from siambench.config import Verb

VERBS = {
    "svm": Verb(
        name="svm",
        help="VOC07 linear SVMs on frozen features, full or low-shot",
        config="eval_lowshot.config:SvmConfig",
        run="eval_lowshot.evaluate:run",
        presets="eval_lowshot:presets/svm",
        check="eval_lowshot.config:check_config",
        benchmark="eval_lowshot.evaluate:BENCHMARK",
    )
}
