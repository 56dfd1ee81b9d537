"""The names that libraries give to the weights of one ResNet, and torchvision's for each.

A *spelling* is a function from a library's name (prefix taken off) to torchvision's, or to None when
the name is no part of the ResNet without ``fc``.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

Spelling = Callable[[str], str | None]
_BODY = re.compile(r"(conv1|bn1|layer[1-4])\.")


def torchvision(name: str) -> str | None:
    """torchvision's own names, which timm, VISSL, mmpretrain and most releases share."""
    return name if _BODY.match(name) else None


_CHILDREN = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]


def numbered(name: str) -> str | None:
    """Names in ``nn.Sequential(*list(resnet.children())[:-1])``, as lightly builds its backbones."""
    child, _, rest = name.partition(".")
    if not re.fullmatch("[014567]", child):
        return None
    return f"{_CHILDREN[int(child)]}.{rest}"


def detectron2(name: str) -> str | None:
    """detectron2's names (modeling/backbone/resnet.py): stem, res2 to res5, shortcut, conv1.norm."""
    if name.startswith("stem.conv1."):
        rest = name.removeprefix("stem.")
        return f"bn1.{rest[11:]}" if rest.startswith("conv1.norm.") else rest
    stage, _, rest = name.partition(".")
    if not re.fullmatch("res[2-5]", stage):
        return None
    rest = re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", rest)
    rest = rest.replace(".shortcut.norm.", ".downsample.1.")
    rest = rest.replace(".shortcut.", ".downsample.0.")
    return f"layer{int(stage[3]) - 1}.{rest}"


_TRANSFORMERS = re.compile(
    r"(?:embedder\.(embedder)|encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|shortcut))"
    r"\.(convolution|normalization)\.(\w+)"
)


def transformers(name: str) -> str | None:
    """Hugging Face transformers' names (models/resnet/modeling_resnet.py)."""
    match = _TRANSFORMERS.fullmatch(name)
    if not match:
        return None
    stem, stage, block, conv, kind, part = match.groups()
    if stem:
        return f"{'conv1' if kind == 'convolution' else 'bn1'}.{part}"
    where = f"layer{int(stage) + 1}.{block}"
    if conv is None:
        return f"{where}.downsample.{0 if kind == 'convolution' else 1}.{part}"
    return f"{where}.{'conv' if kind == 'convolution' else 'bn'}{int(conv) + 1}.{part}"


def detectron2_name(name: str) -> str:
    """detectron2's name for torchvision's ``name``: the inverse of :func:`detectron2`."""
    stage, _, rest = name.partition(".")
    if stage == "conv1":
        return f"stem.conv1.{rest}"
    if stage == "bn1":
        return f"stem.conv1.norm.{rest}"
    rest = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", rest)
    rest = rest.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    return f"res{int(stage[5]) + 1}.{rest}"


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """A backbone's state dict under detectron2's names, as its C4 and FPN backbones take it.

    The names are those of MoCo's transfer recipe (facebookresearch/moco, detection/). The network
    they belong to has its stride in the 3×3 convolutions (``STRIDE_IN_1X1: False``) and takes RGB.

    Args:
        state: torchvision names to tensors, without ``fc``.

    Returns:
        detectron2 names to arrays that share memory with ``state``'s CPU tensors.
    """
    return {detectron2_name(name): tensor.detach().cpu().numpy() for name, tensor in state.items()}
