"""What a backbone can be written as: one row a target, with what the library it is for must be told."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.resnet import BasicBlock

from convert.config import Target
from siambench.backbone import BackboneMeta, save_backbone
from siambench.checkpoints.names import to_detectron2
from siambench.checkpoints.pickles import write_detectron2
from siambench.files import atomic_path
from siambench.resnet import ARCHS, parse_arch

State = dict[str, Tensor]


@dataclass(frozen=True)
class Usage:
    """How to use what was written.

    Attributes:
        settings: the configuration under which the library computes what torchvision does, as YAML
            that can be pasted into its file; ``""`` where none is needed.
        notes: the call that loads it, or why the library cannot build this architecture.
    """

    settings: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A row of ``TARGETS``.

    Attributes:
        endings: of the file; the first is the usual one.
        write: state dict (torchvision names, no ``fc``) and metadata to a file, atomically.
        usage: what the user should know of a file of this architecture.
    """

    endings: tuple[str, ...]
    write: Callable[[Path, State, BackboneMeta], None]
    usage: Callable[[BackboneMeta], Usage]


def _write_torch(out: Path, state: State, meta: BackboneMeta) -> None:
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        torch.save(state, handle)


def _write_timm(out: Path, state: State, meta: BackboneMeta) -> None:
    """timm's names are torchvision's; its safetensors files carry no metadata but the framework."""
    if out.suffix != ".safetensors":
        return _write_torch(out, state, meta)
    with atomic_path(out) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _write_detectron2(out: Path, state: State, meta: BackboneMeta) -> None:
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        write_detectron2(handle, to_detectron2(state))


def _use_torchvision(meta: BackboneMeta) -> Usage:
    call = f"torchvision.models.{meta.arch}() takes it once its fc is torch.nn.Identity()"
    if not hasattr(torchvision.models, meta.arch):
        call = (
            f"torchvision has no {meta.arch}; siambench.resnet.build_resnet({meta.arch!r}) takes it"
        )
    return Usage(notes=(call,))


def _use_timm(meta: BackboneMeta) -> Usage:
    spec, planes = parse_arch(meta.arch)
    name = meta.arch.partition("-")[0]
    if name == "resnet10" or spec.widen > 1:
        return Usage(notes=(f"timm has no {name}: no name of timm.create_model takes this file",))
    narrow = "" if planes == 64 else f", channels={[planes << i for i in range(4)]}"
    call = f"timm.create_model({name!r}, num_classes=0{narrow}, checkpoint_path=...) takes it"
    return Usage(notes=(call,))


# Depths that detectron2's build_resnet_backbone knows (modeling/backbone/resnet.py).
_DEPTHS = {
    (ARCHS[f"resnet{depth}"].block, ARCHS[f"resnet{depth}"].layers): depth
    for depth in (18, 34, 50, 101, 152)
}
_STAGES = ["res2", "res3", "res4", "res5"]


def _use_detectron2(meta: BackboneMeta, *, fpn: bool) -> Usage:
    """The settings, their names and defaults as in detectron2's config/defaults.py.

    What detectron2 cannot build by configuration is said; with a backbone registered in code the
    file still loads.
    """
    spec, planes = parse_arch(meta.arch)
    basic, depth = spec.block is BasicBlock, _DEPTHS.get((spec.block, spec.layers))
    resnets: dict[str, Any] = {"DEPTH": depth} if depth else {}
    resnets |= {"STRIDE_IN_1X1": False, "RES2_OUT_CHANNELS": planes * spec.block.expansion}
    if not basic:
        resnets["WIDTH_PER_GROUP"] = planes * spec.width_per_group // 64
    if spec.stem != 64:
        resnets["STEM_OUT_CHANNELS"] = spec.stem
    mean, std = ([round(255 * x, 3) for x in values] for values in (meta.mean, meta.std))
    model: dict[str, Any] = {"PIXEL_MEAN": mean, "PIXEL_STD": std}
    if fpn:
        model["BACKBONE"] = {"NAME": "build_resnet_fpn_backbone"}
        model["RESNETS"] = resnets | {"OUT_FEATURES": _STAGES}
        model["FPN"] = {"IN_FEATURES": _STAGES}
    else:
        model["BACKBONE"] = {"NAME": "build_resnet_backbone"}
        model["RESNETS"] = resnets | {"OUT_FEATURES": ["res4"]}
        model["ROI_HEADS"] = {"NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"]}
    notes = []
    if depth is None:
        known = ", ".join(map(str, _DEPTHS.values()))
        notes.append(f"detectron2 builds no {meta.arch} by configuration: its depths are {known}")
    elif basic and planes != 64:
        notes.append(f"detectron2 builds no {meta.arch} by configuration: depth {depth} is 64 wide")
    if basic and not fpn:
        notes.append(
            "detectron2's Res5ROIHeads builds bottlenecks, never basic blocks: this res5 loads into "
            "an FPN's backbone (--to detectron2-fpn), not into a C4 head"
        )
    tree = {"INPUT": {"FORMAT": "RGB"}, "MODEL": model}
    return Usage("\n".join(_yaml(tree)), tuple(notes))


def _yaml(tree: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value}"


# detectron2 tells its own files by their ending. Its two targets are the same bytes: it looks for
# res5 in the RoI head or in backbone.bottom_up by itself.
TARGETS: dict[Target, Format] = {
    "safetensors": Format((".safetensors",), save_backbone, lambda _: Usage()),
    "torchvision": Format((".pth", ".pt"), _write_torch, _use_torchvision),
    "timm": Format((".safetensors", ".pth"), _write_timm, _use_timm),
    "detectron2-c4": Format((".pkl",), _write_detectron2, partial(_use_detectron2, fpn=False)),
    "detectron2-fpn": Format((".pkl",), _write_detectron2, partial(_use_detectron2, fpn=True)),
}
