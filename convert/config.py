"""What a conversion takes."""

from dataclasses import dataclass
from typing import Literal

Target = Literal["safetensors", "torchvision", "timm", "detectron2-c4", "detectron2-fpn"]


@dataclass
class ConvertConfig:
    """A checkpoint in, a file of weights out. Every expected weight is found, or nothing is written.

    Args:
        source: a checkpoint, a backbone file, a detectron2 .pkl, timm:NAME, torchvision:NAME,
            hf-hub:REPO, or random:ARCH (e.g. random:resnet18-w32) for torchvision's default
            initialisation; also given by place.
        out: the file to write: .safetensors, .pth or .pt (torchvision), .safetensors or .pth (timm),
            .pkl (detectron2).
        to: what to write; safetensors is the backbone file every benchmark reads. The settings that
            detectron2 needs with it are printed.
        branch: which encoder, where the source holds several: query, key, teacher, student, ... or
            its prefix; by default the published convention, which is printed.
        method: pre-training method as a table should print it, e.g. SimSiam; by default what the
            checkpoint says or its layout implies.
        epochs: pre-training epochs; by default what the checkpoint says.
        mean: per-channel RGB mean of the input in [0, 1], e.g. [0.5,0.5,0.5]; by default the
            source's, else ImageNet's.
        std: and standard deviation.
        seed: of random:ARCH.
    """

    source: str
    out: str
    to: Target = "safetensors"
    branch: str = ""
    method: str = ""
    epochs: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    seed: int = 0
