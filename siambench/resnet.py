"""torchvision ResNets by name, at any width, and the names and shapes their weights must have.

The widened ones (``resnet50w2``) are those of SimCLR, SwAV and VICReg: every layer and the stem.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from siambench.errors import UserError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Arch:
    """What torchvision's ``ResNet`` is built from.

    Attributes:
        block: of every layer.
        layers: blocks in layer1 to layer4.
        width_per_group: channels of a bottleneck's 3×3 convolution for each 64 planes.
        widen: factor on the channels of the stem and of every layer.
    """

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    width_per_group: int = 64
    widen: int = 1

    @property
    def stem(self) -> int:
        """Channels of the stem; ``-wN`` does not change them."""
        return 64 * self.widen


# The names are torchvision's (models/resnet.py); resnet10 is the same class with one block a layer.
# The widened names are SwAV's (src/resnet50.py, hubconf.py), the channels those of VICReg's resnet.py
# and of both papers' parameter counts: 94, 375 and 586 million (Caron et al. 2020).
ARCHS: dict[str, Arch] = {
    "resnet10": Arch(BasicBlock, (1, 1, 1, 1)),
    "resnet18": Arch(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Arch(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Arch(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Arch(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Arch(Bottleneck, (3, 8, 36, 3)),
    "wide_resnet50_2": Arch(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Arch(Bottleneck, (3, 4, 23, 3), width_per_group=128),
    "resnet50w2": Arch(Bottleneck, (3, 4, 6, 3), widen=2),
    "resnet50w4": Arch(Bottleneck, (3, 4, 6, 3), widen=4),
    "resnet50w5": Arch(Bottleneck, (3, 4, 6, 3), widen=5),
}


def parse_arch(name: str) -> tuple[Arch, int]:
    """Split ``"resnet18-w32"`` into its architecture and the planes of layer1.

    Planes are the stem's channels when the name does not say them: 64, or 128 for ``resnet50w2``.

    Raises:
        UserError: the name is not one of ``ARCHS``, with an optional ``-wN`` (N a multiple of 8).
    """
    match = re.fullmatch(r"(\w+?)(?:-w(\d+))?", name)
    spec = ARCHS.get(match[1]) if match else None
    planes = int(match[2] or spec.stem) if match and spec else 0
    if spec is None or planes < 8 or planes % 8:
        known = ", ".join(ARCHS)
        raise UserError(
            f"architecture {name!r} is unknown; known: {known}, each also as NAME-wN with N (a "
            "multiple of 8) planes in layer1 instead of 64, e.g. resnet18-w32"
        )
    return spec, planes


class _ScaledResNet(ResNet):
    """torchvision's ResNet with the planes of every layer scaled, and the stem's where it is widened."""

    def __init__(self, arch: Arch, planes: int, zero_init_residual: bool) -> None:
        self._stem, self._first_planes = arch.stem, planes
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
        if planes == 64 != self._stem:  # layer1, made right after the stem of 64 channels
            self.inplanes = self._stem
            self.conv1 = nn.Conv2d(3, self._stem, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self._stem)
        return super()._make_layer(block, planes * self._first_planes // 64, blocks, stride, dilate)


def build_resnet(arch: str, *, zero_init_residual: bool = False) -> ResNet:
    """A randomly initialised torchvision ResNet whose ``fc`` is the identity.

    Args:
        arch: one of ``ARCHS``, with an optional ``-wN`` for N planes in layer1 (then 2N, 4N, 8N).
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
    """Channels of layer4, and so of the pooled feature: 2048 for resnet50, 4096 for resnet50w2."""
    spec, planes = parse_arch(arch)
    return planes * 8 * spec.block.expansion


@lru_cache(maxsize=32)
def expected_shapes(arch: str) -> Shapes:
    """Name and shape of every tensor of ``arch`` without ``fc``, in torchvision's order.

    318 tensors for resnet50.

    Raises:
        UserError: unknown architecture.
    """
    spec, planes = parse_arch(arch)
    shapes: Shapes = {}

    def conv_norm(conv: str, norm: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{conv}.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (out,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_norm("conv1", "bn1", spec.stem, 3, 7)
    into = spec.stem
    for layer, blocks in enumerate(spec.layers, 1):
        for block in range(blocks):
            inner = planes * spec.width_per_group // 64
            sizes = [(inner, into, 1), (inner, inner, 3), (4 * planes, inner, 1)]
            if spec.block is BasicBlock:
                sizes = [(planes, into, 3), (planes, planes, 3)]
            place, out = f"layer{layer}.{block}", sizes[-1][0]
            for i, size in enumerate(sizes, 1):
                conv_norm(f"{place}.conv{i}", f"{place}.bn{i}", *size)
            if block == 0 and (
                layer > 1 or out != into
            ):  # that is, the stride or the channels change
                conv_norm(f"{place}.downsample.0", f"{place}.downsample.1", out, into, 1)
            into = out
        planes *= 2
    return shapes
