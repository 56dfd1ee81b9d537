"""The ablations' presets, the shipped run, and the collapse that stop-gradient prevents."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from pipeline.runfile import read_run_file
from pretrain import VERBS
from pretrain.config import PretrainConfig, check_config
from pretrain.methods import build_method
from pretrain.monitors import output_std
from siambench.checkpoints.source import read_checkpoint
from siambench.config import make_config

BASE = "in1k-simsiam-100e"
CHANGES = {
    "10-step": {"method": "alternating", "options": {"steps": 10}},
    "100-step": {"method": "alternating", "options": {"steps": 100}},
    "1-epoch": {"method": "alternating", "options": {"steps": 0}},
    "moving-average": {
        "method": "moving_average",
        "options": {"momentum": 0.8},
        "predictor": "none",
    },
    "no-stopgrad": {"stop_gradient": False},
    "no-predictor": {"predictor": "none"},
    "fixed-predictor": {"predictor": "fixed"},
    "decayed-predictor": {"fix_pred_lr": False},
    "bn-none": {"mlp_bn": "none", "warmup_epochs": 10},
    "bn-hidden": {"mlp_bn": "hidden"},
    "bn-all": {"mlp_bn": "all"},
    "asymmetric": {"symmetric": False},
    "cross-entropy": {"similarity": "cross_entropy"},
    "dim256": {"dim": 256, "pred_dim": 64},
    "dim512": {"dim": 512, "pred_dim": 128},
    "dim1024": {"dim": 1024, "pred_dim": 256},
    "bs64": {"batch_size": 64},
    "bs128": {"batch_size": 128},
    "bs256": {"batch_size": 256},
    "bs1024": {"batch_size": 1024, "warmup_epochs": 10},
    "bs2048": {"batch_size": 2048, "warmup_epochs": 10},
    "bs4096": {"batch_size": 4096, "warmup_epochs": 10},
}
HEADS = {name: CHANGES[name] for name in ("no-predictor", "fixed-predictor", "bn-none", "bn-all")}


def _settings(preset):
    config = make_config(VERBS["pretrain"], {"preset": preset, "data": "x"}, "test")
    check_config(config)
    return asdict(replace(config, preset=""))


def test_every_ablation_has_its_preset():
    names = {
        n.removeprefix(f"{BASE}-") for n in VERBS["pretrain"].preset_files() if f"{BASE}-" in n
    }
    assert names == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_preset_differs_in_what_its_name_says_and_nothing_else(name):
    base, ablation = _settings(BASE), _settings(f"{BASE}-{name}")
    assert {k: v for k, v in ablation.items() if v != base[k]} == CHANGES[name]


def test_the_shipped_run_differs_in_stop_gradient_and_nothing_else():
    plan = read_run_file("ablate-stopgrad")
    with_, without = (dict(spec["pretrain"]) for spec in plan.backbones.values())
    assert without.pop("stop_gradient") is False
    assert with_ == without
    for settings in (with_, without):
        check_config(make_config(VERBS["pretrain"], {**settings, "data": "x"}, "test"))


@pytest.mark.parametrize("switches", HEADS.values(), ids=HEADS)
def test_convert_finds_the_backbone_whatever_the_heads(switches, tmp_path):
    config = PretrainConfig(data="", arch="resnet10-w8", dim=16, pred_dim=4)
    method = build_method(replace(config, **switches), 10, 100)
    state = {"format": "siambench-pretrain", "epoch": 3, "method": method.label}
    torch.save({**state, "state_dict": method.state_dict()}, tmp_path / "checkpoint_0003.pth")
    found, meta, _ = read_checkpoint(str(tmp_path / "checkpoint_0003.pth"))
    assert (meta.arch, meta.method, meta.epochs) == ("resnet10-w8", "SimSiam", 3)
    own = {k: v for k, v in method.backbone.state_dict().items() if not k.startswith("fc.")}
    assert found.keys() == own.keys()
    assert all(torch.equal(found[k], own[k]) for k in own)


def _outcome(stop_gradient):
    """Loss and std·√d after 60 steps on noisy digits of 16 pixels."""
    config = PretrainConfig(
        data="",
        arch="resnet10-w8",
        dim=32,
        hidden_dim=32,
        pred_dim=8,
        zero_init_residual=False,
        mlp_bn="hidden",
        stop_gradient=stop_gradient,
    )
    torch.manual_seed(0)
    method = build_method(config, 10, 100)
    optimizer = torch.optim.SGD(method.param_groups(), 1.0, momentum=0.9, weight_decay=3e-3)
    digits = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32)
    digits = F.interpolate(digits[:, None].expand(-1, 3, -1, -1), scale_factor=2)
    for _ in range(60):
        batch = digits[torch.randint(len(digits), (32,))]
        views = [batch + 0.1 * torch.randn_like(batch) for _ in range(2)]
        loss, z = method(views, torch.zeros(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), output_std(z).item() * 32**0.5


def test_without_stop_gradient_the_output_collapses():
    """The paper's figure 2 at its smallest: the loss at its minimum, all outputs one vector."""
    loss, std = _outcome(stop_gradient=False)
    assert loss < -0.99
    assert std < 0.1


def test_with_stop_gradient_it_does_not():
    loss, std = _outcome(stop_gradient=True)
    assert loss < -0.5  # it learns
    assert std > 0.5
