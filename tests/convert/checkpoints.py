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
        branch: as ``--branch`` asks for it.
        taken: the branch that the report names.
    """

    layout: str
    make: Callable[[ResNet], Any]
    prefix: str
    method: str
    epochs: int | None
    dropped: dict[str, int]
    branch: str = ""
    taken: str = ""


def other(model: ResNet) -> State:
    """Another network of the same architecture: the branch that must not be taken."""
    return make_resnet(seed=1).state_dict()


def transformers(model: ResNet) -> State:
    """Hugging Face's names, as its own conversion from timm spells them out."""
    named = {}
    for name, tensor in model.state_dict().items():
        layer, *rest = name.split(".")
        part = rest[-1]
        if layer in ("conv1", "bn1"):
            kind = "convolution" if layer == "conv1" else "normalization"
            named[f"embedder.embedder.{kind}.{part}"] = tensor
            continue
        block, what = rest[0], rest[1]
        if what == "downsample":
            kind, where = ("convolution", "normalization")[int(rest[2])], "shortcut"
        else:
            kind = "convolution" if what.startswith("conv") else "normalization"
            where = f"layer.{int(what[-1]) - 1}"
        named[f"encoder.stages.{int(layer[-1]) - 1}.layers.{block}.{where}.{kind}.{part}"] = tensor
    return named


def two(first: str, second: str) -> Callable[[ResNet], State]:
    """The ResNet behind ``first``, another behind ``second``."""
    return lambda m: put(first, m.state_dict()) | put(second, other(m))


_size = len(build_resnet("resnet10-w8").state_dict())
_mm, _bare = "OpenSelfSup, mmselfsup, mmpretrain", "torchvision, timm (bare names)"
CASES = {
    "ours": Case(
        "siambench pre-training",
        lambda m: {
            **training(put("backbone.", m.state_dict(), projector__0__weight=(3,))),
            "method": "SimSiam", "format": "siambench-pretrain",
        },
        "state_dict.backbone.", "SimSiam", 100, {"optimiser": 1, "projector": 1},
    ),
    "ours supervised": Case(
        "siambench pre-training",
        lambda m: {**training(put("backbone.", m.state_dict()) | head("head.")), "method": "supervised", "format": "siambench-pretrain"},
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
        {"encoder_k": _size, "optimiser": 1, "projector": 1, "queue": 1}, "", "query",
    ),
    "moco v1": Case(
        "MoCo v1",
        lambda m: training(
            put("module.encoder_q.", m.state_dict() | head()) | put("module.encoder_k.", other(m))
        ),
        "state_dict.module.encoder_q.", "MoCo v1", 100,
        {"encoder_k": _size, "optimiser": 1, "projector": 2}, "", "query",
    ),
    "moco": Case(
        "MoCo", lambda m: put("encoder_q.", m.state_dict()), "encoder_q.", "MoCo", None, {}, "", "query"
    ),
    "moco v3": Case(
        "MoCo v3",
        lambda m: training(
            put("module.momentum_encoder.", other(m)) | put("module.base_encoder.", m.state_dict() | head())
        ),
        "state_dict.module.base_encoder.", "MoCo v3", 100,
        {"momentum_encoder": _size, "optimiser": 1, "projector": 2}, "", "base",
    ),
    "moco v3 momentum": Case(
        "MoCo v3",
        lambda m: training(put("module.momentum_encoder.", m.state_dict())),
        "state_dict.module.momentum_encoder.", "MoCo v3", 100, {"optimiser": 1}, "", "momentum",
    ),
    "dino": Case(
        "DINO",
        lambda m: {
            "student": put("module.backbone.", other(m), module__head__mlp__0__weight=(3,)),
            "teacher": put("backbone.", m.state_dict(), head__mlp__0__weight=(3,)),
            "epoch": 300, "args": argparse.Namespace(arch="resnet50", lr=0.3)},
        "teacher.backbone.", "DINO", 300, {"head": 1, "student": _size + 1}, "", "teacher",
    ),
    "dino student": Case(
        "DINO", lambda m: {"student": put("module.backbone.", m.state_dict()), "epoch": 2},
        "student.module.backbone.", "DINO", 2, {}, "", "student",
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
    "vicreg, full": Case(
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
    "pixpro": Case(
        "PixPro",
        lambda m: {"epoch": 400, "model": two("module.encoder.", "module.encoder_k.")(m)},
        "model.module.encoder.", "PixPro", 400, {"encoder_k": _size}, "", "query",
    ),
    "deepcluster": Case(
        "DeepCluster-v2",
        lambda m: put("module.", m.state_dict(), module__prototypes__prototypes0__weight=(3,)),
        "module.", "DeepCluster-v2", None, {"prototypes": 1},
    ),
    "timm training": Case(
        "timm training",
        lambda m: {"epoch": 3, "state_dict": other(m), "state_dict_ema": m.state_dict() | head()},
        "state_dict_ema.", "unknown", None, {"head": 2, "state_dict": _size}, "", "ema",
    ),
    "torchvision references": Case(
        "torchvision references",
        lambda m: {"model": other(m), "model_ema": put("module.", m.state_dict()) | {"n_averaged": torch.tensor(7)}},
        "model_ema.module.", "unknown", None, {"model": _size, "n_averaged": 1}, "", "ema",
    ),
    "solo-learn says its method": Case(
        "solo-learn, BYOL ports (Lightning)",
        lambda m: {"epoch": 99, "pytorch-lightning_version": "1.9", "hyper_parameters": {"method": "byol"},
                   "state_dict": put("backbone.", m.state_dict()) | head("classifier.")},
        "state_dict.backbone.", "byol", None, {"head": 2},
    ),
    "lightning moco": Case(
        "MoCo",
        lambda m: {"epoch": 199, "pytorch-lightning_version": "1.9", "state_dict": put("encoder_q.", m.state_dict())},
        "state_dict.encoder_q.", "MoCo", None, {}, "", "query",
    ),
    "moco v2, key": Case(
        "MoCo v2",
        lambda m: training(
            put("module.encoder_q.", other(m), module__queue=(3,))
            | put("module.encoder_k.", m.state_dict() | {"fc.2.weight": torch.zeros(3)})
        ),
        "state_dict.module.encoder_k.", "MoCo v2", 100,
        {"encoder_q": _size, "optimiser": 1, "projector": 1, "queue": 1}, "key", "key",
    ),
    "moco v1, key": Case(
        "MoCo v1",
        lambda m: put("encoder_q.", other(m)) | put("encoder_k.", m.state_dict() | head()),
        "encoder_k.", "MoCo v1", None, {"encoder_q": _size, "projector": 2}, "key", "key",
    ),
    "moco, key": Case(
        "MoCo", two("encoder_k.", "encoder_q."), "encoder_k.", "MoCo", None, {"encoder_q": _size}, "key", "key",
    ),
    "moco v3, by prefix": Case(
        "MoCo v3", two("module.momentum_encoder.", "module.base_encoder."), "module.momentum_encoder.",
        "MoCo v3", None, {"base_encoder": _size}, "module.momentum_encoder", "momentum",
    ),
    "dino, student asked for": Case(
        "DINO",
        lambda m: {"student": put("module.backbone.", m.state_dict()), "teacher": put("backbone.", other(m))},
        "student.module.backbone.", "DINO", None, {"teacher": _size}, "student", "student",
    ),
    "vissl, feature evaluation": Case(
        "VISSL",
        lambda m: {"classy_state_dict": {"base_model": {"model": {
            "trunk": put("base_model._feature_blocks.", m.state_dict())}}}},
        "classy_state_dict.base_model.model.trunk.base_model._feature_blocks.", "unknown", None, {},
    ),
    "mmselfsup moco": Case(
        _mm,
        lambda m: {"meta": {"epoch": 200}, "state_dict": put("backbone.", m.state_dict(), neck__mlp=(3,), queue=(3,))
                   | put("encoder_k.module.0.", other(m))},
        "state_dict.backbone.", "unknown", 200, {"encoder_k": _size, "projector": 1, "queue": 1},
    ),
    "mmselfsup moco, key": Case(
        _mm, lambda m: {"state_dict": two("encoder_k.module.0.", "backbone.")(m)},
        "state_dict.encoder_k.module.0.", "unknown", None, {"backbone": _size}, "key", "key",
    ),
    "mmselfsup byol, target": Case(
        _mm, lambda m: {"state_dict": two("target_net.module.0.", "backbone.")(m)},
        "state_dict.target_net.module.0.", "BYOL", None, {"backbone": _size}, "target", "target",
    ),
    "solo-learn, momentum": Case(
        "solo-learn, BYOL ports (Lightning)",
        lambda m: {"state_dict": two("momentum_backbone.", "backbone.")(m) | head("classifier.")},
        "state_dict.momentum_backbone.", "unknown", None, {"backbone": _size, "head": 2}, "momentum", "momentum",
    ),
    "byol port": Case(
        "BYOL ports", two("online_network.encoder.", "target_network.encoder."), "online_network.encoder.",
        "BYOL", None, {"target_network": _size}, "", "online",
    ),
    "byol port, target": Case(
        "BYOL ports", two("target_network.encoder.", "online_network.encoder."), "target_network.encoder.",
        "BYOL", None, {"online_network": _size}, "target", "target",
    ),
    "byol, sthalles": Case(
        "BYOL (sthalles)",
        lambda m: {"online_network_state_dict": put("encoder.", sequential(m), projetion__net__0__weight=(3,)),
                   "target_network_state_dict": put("encoder.", sequential(make_resnet(seed=1)))},
        "online_network_state_dict.encoder.", "BYOL", None,
        {"online_network_state_dict": 1, "target_network_state_dict": _size}, "", "online",
    ),
    "byol, sthalles, target": Case(
        "BYOL (sthalles)",
        lambda m: {"target_network_state_dict": put("encoder.", sequential(m))},
        "target_network_state_dict.encoder.", "BYOL", None, {}, "target", "target",
    ),
    "barlow twins, full": Case(
        "Barlow Twins (full)",
        lambda m: {"epoch": 7, "optimizer": {"state": {0: {"mu": torch.zeros(3)}}}, "model": put(
            "module.backbone.", m.state_dict(), module__projector__0__weight=(3,), module__bn__running_mean=(3,))},
        "model.module.backbone.", "Barlow Twins", 7, {"optimiser": 1, "projector": 2},
    ),
    "backbone alone": Case(
        "backbone with heads beside it", lambda m: {"state_dict": put("backbone.", m.state_dict(), mystery=(3,))},
        "state_dict.backbone.", "unknown", None, {"mystery": 1},
    ),
    "lightly, momentum": Case(
        "lightly",
        lambda m: {"state_dict": put("backbone_momentum.", sequential(m)) | put("backbone.", sequential(make_resnet(seed=1)))},
        "state_dict.backbone_momentum.", "unknown", None, {"backbone": _size}, "momentum", "momentum",
    ),
    "lightly dino": Case(
        "lightly",
        lambda m: {"state_dict": put("student_backbone.", sequential(make_resnet(seed=1)))
                   | put("teacher_backbone.", sequential(m))},
        "state_dict.teacher_backbone.", "unknown", None, {"student_backbone": _size}, "", "teacher",
    ),
    "lightly dino, student": Case(
        "lightly", lambda m: put("student_backbone.", sequential(m)), "student_backbone.", "unknown", None, {},
        "student", "student",
    ),
    "transformers": Case(
        "Hugging Face transformers", lambda m: put("resnet.", transformers(m)) | head("classifier.1."), "resnet.",
        "unknown", None, {"head": 2},
    ),
    "transformers, bare": Case(
        "Hugging Face transformers", transformers, "", "unknown", None, {},
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
