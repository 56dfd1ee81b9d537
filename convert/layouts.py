"""Key layouts of public checkpoints: one row each. A new layout is a new row here and in its test.

Rows are tried in order; the first whose place holds a whole ResNet is taken. Where one file holds
several (query and key encoder, teacher and student), the order is the published convention.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from convert import names
from convert.names import Spelling
from convert.reading import Leaf
from convert.recognise import Found

CONTAINERS = ("", "state_dict.", "model.")  # where savers put the weights, in front of any prefix


@dataclass(frozen=True)
class Layout:
    """Where a code base keeps its backbone.

    Attributes:
        name: as the report prints it.
        prefix: of the backbone's names, without ``module.`` and ``_orig_mod.``.
        also: a name that must begin another key of the file, to tell cousins apart.
        method: what the layout implies; ``""`` when several methods share it.
        epochs: key under which the file counts its finished epochs, where that is known.
        spelling: whose names the weights have.
    """

    name: str
    prefix: str
    also: str = ""
    method: str = ""
    epochs: str = ""
    spelling: Spelling = names.torchvision


# Sources: the named repositories' training and extraction scripts.
LAYOUTS = (
    Layout("siambench pre-training", "backbone.", also="method", epochs="epoch"),
    Layout("SimSiam (official)", "encoder.", also="predictor.", method="SimSiam", epochs="epoch"),
    Layout("MoCo v2", "encoder_q.", also="encoder_q.fc.2.", method="MoCo v2", epochs="epoch"),
    Layout("MoCo v1", "encoder_q.", also="encoder_q.fc.weight", method="MoCo v1", epochs="epoch"),
    Layout("MoCo", "encoder_q.", method="MoCo", epochs="epoch"),
    Layout("MoCo v3", "base_encoder.", method="MoCo v3", epochs="epoch"),
    Layout("MoCo v3 (momentum encoder)", "momentum_encoder.", method="MoCo v3", epochs="epoch"),
    Layout("DINO (teacher)", "teacher.backbone.", method="DINO", epochs="epoch"),
    Layout("DINO (student)", "student.backbone.", method="DINO", epochs="epoch"),
    Layout("VISSL", "classy_state_dict.base_model.model.trunk._feature_blocks."),
    Layout("OpenSelfSup, mmselfsup, mmpretrain", "backbone.", also="neck."),
    Layout("OpenSelfSup, mmselfsup, mmpretrain", "backbone.", also="head."),
    Layout("solo-learn, BYOL ports (Lightning)", "backbone.", also="classifier."),
    Layout("backbone with heads beside it", "backbone."),
    Layout("lightly", "backbone.", spelling=names.numbered),
    Layout("numbered Sequential", "", spelling=names.numbered),
    Layout("SwAV", "", also="prototypes.", method="SwAV"),
    Layout("SwAV", "", also="projection_head.", method="SwAV"),
    Layout("detectron2", "", spelling=names.detectron2),
    Layout("torchvision, timm (bare names)", ""),
)


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
