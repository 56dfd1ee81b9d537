"""The configuration of ``siambench svm``, and the literature's lists of SVM costs by name."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from siambench.config import FeatureConfig
from siambench.errors import UserError

Layer = Literal["feature1", "feature2", "feature3", "feature4", "feature5", "avgpool"]
CostList = Literal["fair", "fair-default", "vissl", "vissl-places", "mmselfsup", "virtex"]

_LEAST_COST, _MOST_COST = 1e-10, 1e4  # of C: what the batched solver is tested for
FOLDS = 3  # of the cross-validation that chooses a cost (train_svm_kfold.py, VISSL cross_val_folds)

_POWERS = [0.5**n for n in range(4, 20)]  # what FAIR's svm_helper.parse_cost_list always adds

# Order matters only between equal scores: the first of them is kept.
COSTS: dict[str, list[float]] = {
    # fair_self_supervision_benchmark, the commands of GETTING_STARTED.md: 1e-7 to 1e2, and the powers
    "fair": [float(f"1e{n}") for n in range(-7, 3)] + _POWERS,
    # fair_self_supervision_benchmark, tools/svm/train_svm_*.py: default of --costs_list
    "fair-default": [0.01, 0.1, *_POWERS],
    # VISSL, configs/config/benchmark/low_shot_transfer/voc07 and linear_image_classification/voc07
    "vissl": [0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0],
    # VISSL, configs/config/benchmark/low_shot_transfer/places205
    "vissl-places": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0],
    # mmselfsup, tools/benchmarks/classification/svm_voc07/tools/eval_svm_*.sh
    "mmselfsup": [1.0, 10.0, 100.0, *_POWERS],
    # virtex, scripts/clf_voc07.py
    "virtex": [0.01, 0.1, 1.0, 10.0],
}


@dataclass
class SvmConfig(FeatureConfig):
    """One linear SVM per class on the features of a frozen backbone.

    Args:
        mode: full trains on all of the training split; lowshot on k images per class and negatives.
        layers: what the SVMs see: avgpool, or the pooled outputs of the stem and the four layers.
        costs: values of C to try: the name of a published list, or numbers such as [0.1,1,10].
        solver: batched solves all classes, costs and samples together, each to its optimum; liblinear
            is scikit-learn's LinearSVC, one at a time, as the literature has it.
        k: low-shot: positives per class.
        samples: low-shot: independent draws for each k.
        negatives_per_positive: low-shot with several labels an image: negatives drawn per positive of
            a class; null is classes - 1, which is 19 for VOC. With one label an image the negatives
            are the other classes' k images.
        samples_dir: low-shot: folder of given samples instead of draws: FAIR's or VISSL's .npy files,
            or the samples.json of a run.
        skip_classes: leave out classes that have too few images, and say which, instead of refusing.
        difficult_train: images that hold a class only as "difficult": its negatives, or left out;
            null is the literature's way, negative in full and drop in lowshot. The test split
            always leaves them out.
        transform: squash scales to a square; centercrop keeps the aspect ratio and cuts.
        resize: the shorter side is brought to this first; 0 leaves the step out (squash only).
        size: side in pixels of what the backbone sees.
        storage: of cached features: as FAIR's scripts store them; float16 halves the space.
        download: let torchvision fetch the data set if it is not there.
    """

    mode: Literal["full", "lowshot"] = "full"
    layers: list[Layer] = field(default_factory=lambda: ["avgpool"])
    costs: CostList | list[float] | float = "fair"
    solver: Literal["batched", "liblinear"] = "batched"
    k: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 96])
    samples: int = 5
    negatives_per_positive: int | None = None
    samples_dir: str = ""
    skip_classes: bool = False
    difficult_train: Literal["negative", "drop"] | None = None
    transform: Literal["squash", "centercrop"] = "squash"
    resize: int = 256
    size: int = 224
    storage: Literal["float16", "float32"] = "float32"
    download: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.costs, (int, float)):
            self.costs = [float(self.costs)]
        if self.difficult_train is None:  # so that the record says which it was
            self.difficult_train = "negative" if self.mode == "full" else "drop"

    def idle(self) -> set[str]:
        """Low-shot's fields in full; the folder of given samples, since the fingerprint has their content."""
        if self.mode == "full":
            return {"k", "samples", "negatives_per_positive", "samples_dir"}
        return {"samples_dir"} | ({"negatives_per_positive"} if self.samples_dir else set())


def cost_values(config: SvmConfig) -> list[float]:
    """The costs as numbers."""
    return list(COSTS[config.costs] if isinstance(config.costs, str) else config.costs)


def check_config(config: SvmConfig) -> None:
    """Refuse values that no run could work with.

    Raises:
        UserError: the first of them, by its flag.
    """
    costs = cost_values(config)
    known = get_args(Layer)
    wrong = [
        (not config.layers or set(config.layers) - set(known), "layers", f"some of {known}"),
        (len(set(config.layers)) < len(config.layers), "layers", "each layer once"),
        (
            not costs
            or len(set(costs)) < len(costs)
            or not all(_LEAST_COST <= c <= _MOST_COST for c in costs),
            "costs",
            f"distinct numbers from {_LEAST_COST:g} to {_MOST_COST:g}",
        ),
        (
            not config.k or len(set(config.k)) < len(config.k) or min(config.k) < 1,
            "k",
            "distinct numbers, each at least 1",
        ),
        (config.samples < 1, "samples", "at least 1"),
        (
            config.negatives_per_positive is not None and config.negatives_per_positive < 1,
            "negatives_per_positive",
            "at least 1",
        ),
        (
            bool(config.samples_dir) and config.mode == "full",
            "samples_dir",
            "left out with --mode full, which trains on all images",
        ),
        (config.size < 32, "size", "at least 32"),
        (
            config.resize < 0 or (config.transform == "centercrop" and config.resize < config.size),
            "resize",
            "at least --size with centercrop, and not below 0",
        ),
    ]
    for is_wrong, name, wanted in wrong:
        if is_wrong:
            raise UserError(f"--{name} is {getattr(config, name)}; it must be {wanted}")
