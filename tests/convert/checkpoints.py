"""Checkpoints as public code bases write them, made from one small ResNet."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from siambench.resnet import build_resnet

State = dict[str, Tensor]


def make_resnet(arch: str = "resnet10-w8", seed: int = 0) -> ResNet:
    """A ResNet in evaluation mode whose batch norms are not the identity."""
    torch.manual_seed(seed)
    model = build_resnet(arch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(1234)
    return model.eval()


def images(count: int = 2, size: int = 64) -> Tensor:
    """Normalised images."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def put(prefix: str, state: Mapping[str, Tensor], **others: tuple[int, ...]) -> State:
    """``state`` behind ``prefix``, and other tensors of the given shapes (``__`` stands for a dot)."""
    named = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    return named | {name.replace("__", "."): torch.zeros(shape) for name, shape in others.items()}


def head(prefix: str = "fc.") -> State:
    """A linear classifier's tensors."""
    return {f"{prefix}weight": torch.zeros(4, 64), f"{prefix}bias": torch.zeros(4)}


def sequential(model: ResNet) -> State:
    """As lightly cuts a torchvision model."""
    return nn.Sequential(*list(model.children())[:-1]).state_dict()


def training(state: State, arch: str = "resnet10-w8") -> dict[str, Any]:
    """What the SimSiam and MoCo trainers save each epoch."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 100, "arch": arch, "state_dict": state, "optimizer": optimizer}


@dataclass(frozen=True)
class Case:
    """A checkpoint and what its conversion must say.

    Attributes:
        layout: name of the row.
        make: from a ResNet to what ``torch.save`` is given.
        prefix: as the file has it.
        method, epochs: of the backbone file.
        dropped: groups and counts.
    """

    layout: str
    make: Callable[[ResNet], Any]
    prefix: str
    method: str
    epochs: int | None
    dropped: dict[str, int]


def other(model: ResNet) -> State:
    """Another network of the same architecture: the branch that must not be taken."""
    return make_resnet(seed=1).state_dict()


_size = len(build_resnet("resnet10-w8").state_dict())
_mm, _bare = "OpenSelfSup, mmselfsup, mmpretrain", "torchvision, timm (bare names)"
CASES = {
    "ours": Case(
        "siambench pre-training",
        lambda m: {
            **training(put("backbone.", m.state_dict(), projector__0__weight=(3,))),
            "method": "SimSiam",
        },
        "state_dict.backbone.", "SimSiam", 100, {"optimiser": 1, "projector": 1},
    ),
    "ours supervised": Case(
        "siambench pre-training",
        lambda m: {**training(put("backbone.", m.state_dict()) | head("head.")), "method": "supervised"},
        "state_dict.backbone.", "supervised", 100, {"head": 2, "optimiser": 1},
    ),
    "simsiam": Case(
        "SimSiam (official)",
        lambda m: training(
            put("module.encoder.", m.state_dict() | head(), module__predictor__0__weight=(3,))
        ),
        "state_dict.module.encoder.", "SimSiam", 100, {"optimiser": 1, "predictor": 1, "projector": 2},
    ),
    "moco v2": Case(
        "MoCo v2",
        lambda m: training(
            put("module.encoder_q.", m.state_dict(), module__encoder_q__fc__2__weight=(3,), module__queue=(3,))
            | put("module.encoder_k.", other(m))
        ),
        "state_dict.module.encoder_q.", "MoCo v2", 100,
        {"encoder_k": _size, "optimiser": 1, "projector": 1, "queue": 1},
    ),
    "moco v1": Case(
        "MoCo v1",
        lambda m: training(
            put("module.encoder_q.", m.state_dict() | head()) | put("module.encoder_k.", other(m))
        ),
        "state_dict.module.encoder_q.", "MoCo v1", 100,
        {"encoder_k": _size, "optimiser": 1, "projector": 2},
    ),
    "moco": Case(
        "MoCo", lambda m: put("encoder_q.", m.state_dict()), "encoder_q.", "MoCo", None, {}
    ),
    "moco v3": Case(
        "MoCo v3",
        lambda m: training(
            put("module.momentum_encoder.", other(m)) | put("module.base_encoder.", m.state_dict() | head())
        ),
        "state_dict.module.base_encoder.", "MoCo v3", 100,
        {"momentum_encoder": _size, "optimiser": 1, "projector": 2},
    ),
    "moco v3 momentum": Case(
        "MoCo v3",
        lambda m: training(put("module.momentum_encoder.", m.state_dict())),
        "state_dict.module.momentum_encoder.", "MoCo v3", 100, {"optimiser": 1},
    ),
    "dino": Case(
        "DINO",
        lambda m: {
            "student": put("module.backbone.", other(m), module__head__mlp__0__weight=(3,)),
            "teacher": put("backbone.", m.state_dict(), head__mlp__0__weight=(3,)),
            "epoch": 300, "args": argparse.Namespace(arch="resnet50", lr=0.3)},
        "teacher.backbone.", "DINO", 300, {"student": _size + 1, "teacher": 1},
    ),
    "dino student": Case(
        "DINO", lambda m: {"student": put("module.backbone.", m.state_dict()), "epoch": 2},
        "student.module.backbone.", "DINO", 2, {},
    ),
    "vissl": Case(
        "VISSL",
        lambda m: {"classy_state_dict": {"base_model": {"model": {
            "trunk": put("_feature_blocks.", m.state_dict()), "heads": head("0.")}}}},
        "classy_state_dict.base_model.model.trunk._feature_blocks.", "unknown", None, {"classy_state_dict": 2},
    ),
    "mmselfsup": Case(
        _mm, lambda m: {"meta": {"epoch": 5}, "state_dict": put("backbone.", m.state_dict(), neck__fc=(3,))},
        "state_dict.backbone.", "unknown", 5, {"projector": 1},
    ),
    "mmpretrain": Case(
        _mm, lambda m: {"state_dict": put("backbone.", m.state_dict()) | head("head.fc.")},
        "state_dict.backbone.", "unknown", None, {"head": 2},
    ),
    "solo-learn": Case(
        "solo-learn, BYOL ports (Lightning)",
        lambda m: {"epoch": 3, "state_dict": put("backbone.", m.state_dict(), projector__0__weight=(3,))
                   | put("momentum_backbone.", other(m)) | head("classifier.")},
        "state_dict.backbone.", "unknown", None,
        {"head": 2, "momentum_backbone": _size, "projector": 1},
    ),
    "barlow twins, full": Case(
        "VICReg (full)",
        lambda m: {"epoch": 7, "model": put("module.backbone.", m.state_dict(), module__projector__0__weight=(3,))},
        "model.module.backbone.", "unknown", 7, {"projector": 1},
    ),
    "lightly": Case(
        "lightly", lambda m: {"state_dict": put("backbone.", sequential(m), projection_head__0__weight=(3,))},
        "state_dict.backbone.", "unknown", None, {"projector": 1},
    ),
    "numbered": Case("numbered Sequential", sequential, "", "unknown", None, {}),
    "swav": Case(
        "SwAV",
        lambda m: put("module.", m.state_dict(), module__projection_head__0__weight=(3,), module__prototypes__weight=(3,)),
        "module.", "SwAV", None, {"projector": 1, "prototypes": 1},
    ),
    "swav without prototypes": Case(
        "SwAV", lambda m: put("module.", m.state_dict(), module__projection_head__0__weight=(3,)),
        "module.", "SwAV", None, {"projector": 1},
    ),
    "torchvision": Case(
        _bare, lambda m: m.state_dict() | head(), "", "unknown", None, {"head": 2}
    ),
    "compiled, then distributed": Case(
        _bare, lambda m: put("module._orig_mod.", m.state_dict()), "module._orig_mod.", "unknown", None, {}
    ),
    "compiled encoder, distributed inside": Case(
        "SimSiam (official)",
        lambda m: training(put("_orig_mod.encoder.module.", m.state_dict(), _orig_mod__predictor__0=(3,))),
        "state_dict._orig_mod.encoder.module.", "SimSiam", 100, {"optimiser": 1, "predictor": 1},
    ),
    "own wrapper": Case(
        "no published layout, but a whole ResNet", lambda m: {"net": put("trunk.", m.state_dict())},
        "net.trunk.", "unknown", None, {},
    ),
}  # fmt: skip


def save(payload: Any, folder: Path, name: str = "checkpoint.pth") -> Path:
    """``torch.save`` into ``folder``."""
    torch.save(payload, folder / name)
    return folder / name
