"""Presets of the linear probe against the published numbers, and the checks of any numbers."""

import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import yaml

from eval_linear import VERBS
from eval_linear.checks import problems
from eval_linear.config import LinearConfig
from siambench.config import FeatureConfig, make_config

VERB = VERBS["linear"]
PLACE = {"backbone": "b", "data": "d"}
FIVE = [f"feature{stage}" for stage in range(1, 6)]

# name: optimiser, rate at batch 256, batch, epochs, weight decay, nesterov, milestones, layers
PUBLISHED = {
    # simsiam main_lincls.py --lars: LARC(trust_coefficient=.001, clip=False), .1 * 4096 / 256 = 1.6
    "in1k-linear-lars-90e": ("lars", 0.1, 4096, 90, 0.0, False, [], ["avgpool"]),
    # moco main_lincls.py
    "in1k-linear-sgd-100e": ("sgd", 30.0, 256, 100, 0.0, False, [60, 80], ["avgpool"]),
    # arXiv 2105.04906, appendix C; vicreg evaluate.py
    "in1k-linear-vicreg-100e": ("sgd", 0.02, 256, 100, 1e-6, False, [], ["avgpool"]),
    # barlowtwins evaluate.py
    "in1k-linear-barlow-twins-100e": ("sgd", 0.3, 256, 100, 1e-6, False, [], ["avgpool"]),
    # lightly benchmarks/imagenet/resnet50/linear_eval.py
    "in1k-linear-lightly-90e": ("sgd", 0.1, 256, 90, 0.0, False, [], ["avgpool"]),
    # mmselfsup 0.x resnet50_mhead_linear-8xb32-steplr-90e_in1k.py, and a sixth head
    "in1k-linear-mhead-90e": (
        *("sgd", 0.01, 256, 90, 1e-4, True),
        *([30, 60, 90], [*FIVE, "avgpool"]),
    ),
    # VISSL eval_resnet_8gpu_transfer_places205_linear.yaml
    "places205-linear": ("sgd", 0.01, 256, 14, 5e-4, True, [4, 8, 12], ["avgpool"]),
    # arXiv 2105.04906, C.3
    "places205-linear-vicreg": ("sgd", 0.003, 256, 28, 1e-4, True, [4, 8, 12], ["avgpool"]),
    # mmselfsup 0.x resnet50_mhead_8xb32-steplr-28e_places205.py, and a sixth head
    "places205-linear-mhead": (
        *("sgd", 0.01, 256, 28, 1e-4, True),
        *([7, 14, 21], [*FIVE, "avgpool"]),
    ),
    # VISSL eval_resnet_8gpu_transfer_inaturalist18_linear.yaml
    "inat18-linear": ("sgd", 0.01, 256, 84, 5e-4, True, [24, 48, 72], ["avgpool"]),
    # arXiv 2105.04906, C.3
    "inat18-linear-vicreg": ("sgd", 0.005, 256, 84, 1e-4, True, [24, 48, 72], ["avgpool"]),
    # VISSL eval_resnet_8gpu_transfer_caltech101_linear.yaml: .01 and 5e-4 on a loss 20 times ours
    "voc07-linear": ("sgd", 20 * 0.01, 256, 28, 5e-4 / 20, True, [8, 16, 24], ["avgpool"]),
}
# eval_mlp and mmselfsup's multi_cls_head have a norm; nothing else has
NORMED = {name for name in PUBLISHED if not name.startswith("in1k-")} | {"in1k-linear-mhead-90e"}


def test_every_preset_has_its_row():
    assert set(VERB.preset_files()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(name):
    made = make_config(VERB, {"preset": name, **PLACE})
    optimizer, rate, batch, epochs, decay, nesterov, milestones, layers = PUBLISHED[name]
    assert made.optimizer == optimizer
    assert made.base_lr == pytest.approx(rate, rel=1e-12)
    assert made.weight_decay == pytest.approx(decay, rel=1e-12)
    assert (made.batch_size, made.epochs, made.nesterov) == (batch, epochs, nesterov)
    assert (made.milestones, made.layers) == (milestones, layers)
    assert made.schedule == ("step" if milestones else "cosine")
    assert made.batch_norm == (name in NORMED)
    # all: momentum 0.9, Resize(256), CenterCrop(224), flips, crops anew in every epoch
    assert (made.momentum, made.gamma, made.resize, made.crop) == (0.9, 0.1, 256, 224)
    assert (made.flip, made.road, made.views) == (True, "online", 0)
    assert made.train_crop == ("random" if name == "places205-linear-mhead" else "resized")
    jitter = (0.4, 0.1) if name == "in1k-linear-mhead-90e" else (0.0, 0.0)
    assert (made.color_jitter, made.lighting) == jitter
    assert problems(made) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_number_is_stated_and_explained(name):
    """Nothing hangs on the defaults, which are of another road; what differs from them has its source."""
    text = VERB.preset_files()[name].read_text()
    stated, plain = yaml.safe_load(text), LinearConfig(**PLACE)
    own = {f.name for f in fields(plain)} - {f.name for f in fields(FeatureConfig)} - {"download"}
    idle = {"holdout", "views"}  # of sweeps and of the cached road
    idle |= {"gamma"} if stated["schedule"] == "cosine" else set()
    idle |= {"min_scale"} if stated["train_crop"] == "random" else set()
    assert own - idle <= set(stated) <= own
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    for key, value in stated.items():
        (line,) = (line for line in lines if line.startswith(f"{key}:"))
        words = isinstance(value, str)
        assert words or "#" in line or value == getattr(plain, key), line


def test_defaults_are_the_short_road():
    made = LinearConfig(**PLACE)
    assert (made.road, made.optimizer, made.batch_size, made.epochs) == ("cached", "sgd", 256, 90)
    rates = [rate for rate, _ in made.settings]
    assert len(rates) == 10
    assert all(2.9 < b / a < 3.5 for a, b in pairwise(rates))  # even in log
    assert {decay for _, decay in made.settings} == {0.0}
    assert problems(made) == []


def test_settings_are_all_pairs_in_order():
    made = LinearConfig(**PLACE, base_lr=[1.0, 3.0], weight_decay=[0.0, 1e-4])
    assert made.settings == [(1.0, 0.0), (1.0, 1e-4), (3.0, 0.0), (3.0, 1e-4)]
    assert replace(made, base_lr=0.5).settings == [(0.5, 0.0), (0.5, 1e-4)]
    assert replace(made, base_lr=0.5, weight_decay=0.0).settings == [(0.5, 0.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_lr": []}, "at least one of each"),
        ({"weight_decay": []}, "at least one of each"),
        ({"base_lr": [0.1, 0.1]}, "each value once"),
        ({"weight_decay": [0.0, 0.0]}, "each value once"),
        *(({"base_lr": value}, "base_lr must be positive") for value in (0.0, -1.0, math.inf)),
        ({"base_lr": [0.1, math.nan]}, "base_lr must be positive"),
        *(({"weight_decay": v}, "not be negative") for v in (-1e-9, math.nan, math.inf)),
        *(({"holdout": value}, "holdout") for value in (0.0, 1.0, math.nan)),
        *(({"momentum": value}, "momentum") for value in (-0.1, 1.0, math.nan)),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_norm": True, "batch_size": 1}, "at least 2"),
        ({"epochs": 0}, "epochs"),
        ({"milestones": [2]}, "schedule step"),
        *(({"schedule": "step", "milestones": m}, "rise") for m in ([3, 2], [2, 2], [0], [91])),
        *(({"gamma": value}, "gamma") for value in (0.0, 1.1, math.nan)),
        ({"layers": []}, "at least one"),
        ({"layers": ["avgpool", "avgpool"]}, "each once"),
        ({"layers": ["layer4", "fc"]}, "layer4, fc not among feature1"),
        ({"crop": 257}, "at most resize"),
        ({"crop": 0}, "at least 1"),
        *(({"min_scale": value}, "min_scale") for value in (0.0, 1.1, math.nan)),
        *(({"color_jitter": value}, "color_jitter") for value in (-0.1, 1.1, math.nan)),
        *(({"lighting": value}, "lighting") for value in (-0.1, math.inf, math.nan)),
        ({"views": -1}, "views"),
        ({"road": "online", "views": 1}, "cached road"),
    ],
)
def test_numbers_out_of_range_are_one_line_each(change, message):
    made = LinearConfig(**PLACE)
    (line,) = problems(replace(made, **change))
    assert message in line
    assert len(line.splitlines()) == 1


def test_edges_of_the_ranges_are_inside():
    edge = {"momentum": 0.0, "gamma": 1.0, "min_scale": 1.0, "color_jitter": 1.0, "crop": 256}
    steps = {"schedule": "step", "milestones": [1, 90], "batch_size": 1}
    assert problems(LinearConfig(**PLACE, **edge, **steps)) == []
