"""Key layouts of public checkpoints: one row each. A new layout is a new row here and in its test.

Rows are tried in order; the first whose place holds a whole ResNet is taken. Where one file holds
several (query and key encoder, teacher and student), the order is the published convention and
``branch`` the word that asks for another.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from siambench.checkpoints import names
from siambench.checkpoints.leaves import Leaf
from siambench.checkpoints.names import Spelling
from siambench.checkpoints.recognise import Found

CONTAINERS = ("", "state_dict.", "model.")  # where savers put the weights, in front of any prefix


@dataclass(frozen=True)
class Layout:
    """Where a code base keeps its backbone.

    Attributes:
        name: as the report prints it.
        prefix: of the backbone's names, without ``module.`` and ``_orig_mod.``.
        also: a name that must begin another key of the file, to tell cousins apart.
        branch: which of several encoders this is.
        method: what the layout implies; ``""`` when several methods share it.
        epochs: key under which the file counts its finished epochs, where that is known.
        fc: what the ResNet's own ``fc`` is here, for the report.
        spelling: whose names the weights have.
        no: why such a file is refused, whole or not.
        says: key under which the file names its method.
    """

    name: str
    prefix: str
    also: str = ""
    branch: str = ""
    method: str = ""
    epochs: str = ""
    fc: str = "head"
    spelling: Spelling = names.torchvision
    no: str = ""
    says: str = ""

    @property
    def second(self) -> bool:
        """Whether by convention another encoder of the same file is the backbone."""
        return self.branch in ("key", "momentum", "student", "target")


_SOLO = "solo-learn, BYOL ports (Lightning)"
_MM = "OpenSelfSup, mmselfsup, mmpretrain"
_DETECTOR = (
    "a trained detector or segmenter; whether it takes BGR, dilates or strides in its 1×1 convolutions, "
    "as many do, is not in the file: convert what it was fine-tuned from"
)
CAFFE = (
    "Caffe's ResNet takes BGR from 0 to 255 and strides in its 1×1 convolutions: no ResNet of "
    "torchvision's computes it"
)

# Sources: the named repositories' training and extraction scripts.
LAYOUTS = (
    Layout("siambench pre-training", "backbone.", also="format", epochs="epoch", says="method"),
    Layout("PixPro", "encoder.", "encoder_k.", "query", "PixPro", "epoch"),
    Layout("SimSiam (official)", "encoder.", also="predictor.", method="SimSiam", epochs="epoch", fc="projector"),
    Layout("MoCo v2", "encoder_q.", "encoder_q.fc.2.", "query", "MoCo v2", "epoch", "projector"),
    Layout("MoCo v2", "encoder_k.", "encoder_k.fc.2.", "key", "MoCo v2", "epoch", "projector"),
    Layout("MoCo v1", "encoder_q.", "encoder_q.fc.weight", "query", "MoCo v1", "epoch", "projector"),
    Layout("MoCo v1", "encoder_k.", "encoder_k.fc.weight", "key", "MoCo v1", "epoch", "projector"),
    Layout("MoCo", "encoder_q.", branch="query", method="MoCo", epochs="epoch"),
    Layout("MoCo", "encoder_k.", branch="key", method="MoCo", epochs="epoch"),
    Layout("MoCo v3", "base_encoder.", "", "base", "MoCo v3", "epoch", "projector"),
    Layout("MoCo v3", "momentum_encoder.", "", "momentum", "MoCo v3", "epoch", "projector"),
    Layout("DINO", "teacher.backbone.", branch="teacher", method="DINO", epochs="epoch"),
    Layout("DINO", "student.backbone.", branch="student", method="DINO", epochs="epoch"),
    Layout("VISSL", "classy_state_dict.base_model.model.trunk._feature_blocks."),
    Layout("VISSL", "classy_state_dict.base_model.model.trunk.base_model._feature_blocks."),
    Layout(_MM, "backbone.", also="neck.", epochs="meta.epoch"),
    Layout(_MM, "backbone.", also="head.", epochs="meta.epoch"),
    Layout(_MM, "encoder_k.0.", branch="key", epochs="meta.epoch"),
    Layout(_MM, "target_net.0.", branch="target", method="BYOL", epochs="meta.epoch"),
    Layout(_SOLO, "backbone.", also="classifier.", says="hyper_parameters.method"),
    Layout(_SOLO, "momentum_backbone.", branch="momentum", says="hyper_parameters.method"),
    Layout("BYOL ports", "online_network.encoder.", branch="online", method="BYOL"),
    Layout("BYOL ports", "target_network.encoder.", branch="target", method="BYOL"),
    Layout("BYOL (sthalles)", "online_network_state_dict.encoder.", "", "online", "BYOL", spelling=names.numbered),
    Layout("BYOL (sthalles)", "target_network_state_dict.encoder.", "", "target", "BYOL", spelling=names.numbered),
    Layout("Barlow Twins (full)", "backbone.", also="bn.", method="Barlow Twins", epochs="epoch"),
    Layout("VICReg (full)", "backbone.", also="projector.", epochs="epoch"),
    Layout("backbone with heads beside it", "backbone."),
    Layout("lightly", "backbone.", spelling=names.numbered),
    Layout("lightly", "teacher_backbone.", spelling=names.numbered, branch="teacher"),
    Layout("lightly", "student_backbone.", spelling=names.numbered, branch="student"),
    Layout("lightly", "backbone_momentum.", spelling=names.numbered, branch="momentum"),
    Layout("numbered Sequential", "", spelling=names.numbered),
    Layout("DeepCluster-v2", "", also="prototypes.prototypes0.", method="DeepCluster-v2", epochs="epoch"),
    Layout("SwAV", "", also="prototypes.", method="SwAV", epochs="epoch"),
    Layout("SwAV", "", also="projection_head.", method="SwAV", epochs="epoch"),
    Layout("Hugging Face transformers", "resnet.", spelling=names.transformers),
    Layout("Hugging Face transformers", "", spelling=names.transformers),
    Layout("detectron2", "", spelling=names.detectron2),
    Layout("detectron2 detector", "backbone.bottom_up.", spelling=names.detectron2, no=_DETECTOR),
    Layout("detectron2 detector", "backbone.", spelling=names.detectron2, no=_DETECTOR),
    Layout("timm training", "state_dict_ema.", branch="ema"),
    Layout("torchvision references", "model_ema.", branch="ema"),
    Layout("torchvision, timm (bare names)", ""),
)  # fmt: skip


def layout_of(found: Found, leaves: Mapping[str, Leaf]) -> tuple[int, Layout, str]:
    """The first row that describes where ``found`` is, its place in the table, and the container.

    A place that no row describes gets a row of its own behind all others.
    """
    for place, row in enumerate(LAYOUTS):
        container = found.prefix.removesuffix(row.prefix)
        if (
            row.spelling is found.spelling
            and container + row.prefix == found.prefix
            and container in CONTAINERS
            and (
                not row.also or any(k.startswith((row.also, container + row.also)) for k in leaves)
            )
        ):
            return place, row, container
    name = "no published layout, but a whole ResNet" if found.whole else "no published layout"
    return len(LAYOUTS), Layout(name, found.prefix, spelling=found.spelling), ""


# Keys that only detectors and segmenters have, and the tensor dimensions that tell a head of theirs.
_TRANSFERRED = re.compile(
    r"(.*\.)?(rpn|rpn_head|roi_heads?|bbox_head|mask_head|proposal_generator|decode_head|auxiliary_head|"
    r"aux_classifier)\."
)
# What mmcv's and mmengine's configurations call Caffe's ResNet and its input.
_CAFFE_SETTINGS = re.compile(r"style['\"]?\s*[=:]\s*['\"]caffe|to_rgb['\"]?\s*[=:]\s*False")


def fine_tuned(leaves: Mapping[str, Leaf]) -> str:
    """Why a checkpoint's ResNet is not what was pre-trained, or is not torchvision's; ``""`` if neither."""
    for key, leaf in leaves.items():
        if isinstance(leaf.value, Tensor):
            segments = leaf.value.dim() == 4 and re.match(r"(.*\.)?classifier\.", key)
            if segments or _TRANSFERRED.match(key):
                return f"{leaf.key} makes it {_DETECTOR}"
        elif isinstance(leaf.value, str) and (found := _CAFFE_SETTINGS.search(leaf.value)):
            return f"its configuration says {found[0]}: {CAFFE}"
    return ""


# What a part of a checkpoint is called in the report; the first pattern that its name (prefix and
# container taken off) begins with.
GROUPS = {
    "predictor": r"predictor|prediction",
    "projector": r"projector|projection|projetion|neck|bn\.",
    "queue": r"queue",
    "prototypes": r"prototypes",
    "head": r"head|classifier|online_classifier",
    "optimiser": r"optimizer|(lr_|param_)?scheduler|(amp_|fp16_)?scaler|amp\b",
}


def dropped_groups(
    leaves: Mapping[str, Leaf], found: Found, layout: Layout, container: str
) -> dict[str, int]:
    """Tensors of a checkpoint that are no part of the backbone, counted by what they belong to."""
    used, groups = set(found.keys.values()), Counter[str]()
    beside = container + layout.prefix.removesuffix(
        "backbone."
    )  # where DINO's teacher has its head
    for key, leaf in leaves.items():
        if not isinstance(leaf.value, Tensor) or key in used:
            continue
        if key.startswith(found.prefix) and key.removeprefix(found.prefix).startswith("fc."):
            groups[layout.fc] += 1
            continue
        starts = (s for s in (found.prefix, beside, container) if key.startswith(s))
        rest = key.removeprefix(next(starts, ""))
        named = (group for group, pattern in GROUPS.items() if re.match(pattern, rest))
        groups[next(named, rest.split(".")[0])] += 1
    return dict(sorted(groups.items()))


# Networks that are often offered and are no ResNet of torchvision's kind: a key, and what it tells.
FOREIGN = {
    r"(.*\.)?res2_0_branch2a_w": f"its names are Caffe2's: {CAFFE}",
    r"(.*\.)?blocks\.\d+\.attn\.": "it is a vision transformer; only ResNets are converted",
    r"(.*\.)?(class_token|cls_token)$": "it is a vision transformer; only ResNets are converted",
    r"(.*\.)?encoder\.layer\.\d+\.attention\.": "it is a transformer; only ResNets are converted",
    r"(.*\.)?stages\.\d+\.\d+\.(conv_dw|dwconv|depthwise)": "it is a ConvNeXt; only ResNets are converted",
    r"(.*\.)?res_net/": "it is a haiku (JAX) parameter tree; convert it to PyTorch names first",
}


def foreign(leaves: Mapping[str, Leaf]) -> str:
    """What a checkpoint without any ResNet is, as far as its keys tell."""
    for pattern, what in FOREIGN.items():
        if any(re.match(pattern, key) for key in leaves):
            return what
    keys = [leaf.key for leaf in leaves.values() if isinstance(leaf.value, Tensor)]
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "") or "none"
    return f"its {len(keys)} tensors: {shown}; the known layouts are in docs/convert.md"
