"""torchvision ResNets by name, at any width, and the names and shapes their weights must have."""

import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from siambench.errors import UserError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Arch:
    """What torchvision's ``ResNet`` is built from: block, blocks per layer, channels per group."""

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    width_per_group: int = 64


# The names are torchvision's (models/resnet.py); resnet10 is the same class with one block a layer.
ARCHS: dict[str, Arch] = {
    "resnet10": Arch(BasicBlock, (1, 1, 1, 1)),
    "resnet18": Arch(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Arch(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Arch(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Arch(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Arch(Bottleneck, (3, 8, 36, 3)),
    "wide_resnet50_2": Arch(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Arch(Bottleneck, (3, 4, 23, 3), width_per_group=128),
}


def parse_arch(name: str) -> tuple[Arch, int]:
    """Split ``"resnet18-w32"`` into its architecture and the planes of its first layer (64 if unsaid).

    Raises:
        UserError: the name is not one of ``ARCHS``, with an optional ``-wN`` (N a multiple of 8).
    """
    match = re.fullmatch(r"(\w+?)(?:-w(\d+))?", name)
    planes = int(match[2] or 64) if match else 0
    if not match or match[1] not in ARCHS or planes < 8 or planes % 8:
        known = ", ".join(ARCHS)
        raise UserError(
            f"architecture {name!r} is unknown; known: {known}, each also as NAME-wN with N (a "
            "multiple of 8) planes in layer1 instead of 64, e.g. resnet18-w32"
        )
    return ARCHS[match[1]], planes


class _ScaledResNet(ResNet):
    """torchvision's ResNet with the planes of every layer scaled; the stem keeps its 64 channels."""

    def __init__(self, arch: Arch, planes: int, zero_init_residual: bool) -> None:
        self._first_planes = planes
        super().__init__(
            arch.block,
            list(arch.layers),
            width_per_group=arch.width_per_group,
            zero_init_residual=zero_init_residual,
        )
        self.fc: nn.Module = nn.Identity()

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        return super()._make_layer(block, planes * self._first_planes // 64, blocks, stride, dilate)


def build_resnet(arch: str, *, zero_init_residual: bool = False) -> ResNet:
    """A randomly initialised torchvision ResNet whose ``fc`` is the identity.

    Args:
        arch: torchvision's name, with an optional ``-wN`` for N planes in layer1 (then 2N, 4N, 8N).
        zero_init_residual: zero the last batch norm of each block (Goyal et al. 2017; SimSiam's
            pre-training uses it). torchvision's default, and the honest random baseline, is False.

    Returns:
        A module mapping images (N, 3, H, W) to pooled features (N, ``feature_dim(arch)``).

    Raises:
        UserError: unknown architecture.
    """
    spec, planes = parse_arch(arch)
    return _ScaledResNet(spec, planes, zero_init_residual)


def feature_dim(arch: str) -> int:
    """Channels of layer4, and so of the pooled feature: 2048 for resnet50, 512 for resnet18."""
    spec, planes = parse_arch(arch)
    return planes * 8 * spec.block.expansion


@lru_cache(maxsize=32)
def expected_shapes(arch: str) -> Shapes:
    """Name and shape of every tensor of ``arch`` without ``fc`` (318 tensors for resnet50)."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in build_resnet(arch).state_dict().items()}
