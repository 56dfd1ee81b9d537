"""Linear probe (the papers' road and cached features) and kNN on a frozen backbone; prediction."""

from siambench.config import Verb

VERBS = {
    "linear": Verb(
        name="linear",
        help="Train linear classifiers on a frozen backbone and test them",
        config="eval_linear.config:LinearConfig",
        run="eval_linear.linear:run",
        presets="eval_linear:presets/linear",
        check="eval_linear.checks:check_linear",
        benchmark="eval_linear.linear:BENCHMARK",
    ),
    "knn": Verb(
        name="knn",
        help="Classify by the nearest neighbours in a frozen backbone's feature space",
        config="eval_linear.config:KnnConfig",
        run="eval_linear.knn:run",
        presets="eval_linear:presets/knn",
        check="eval_linear.checks:check_knn",
        benchmark="eval_linear.knn:BENCHMARK",
    ),
    "predict": Verb(
        name="predict",
        help="Class and score of images, by a linear classifier that `siambench linear` saved",
        config="eval_linear.config:PredictConfig",
        run="eval_linear.predict:run",
        positional=("images",),
    ),
}
