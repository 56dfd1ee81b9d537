"""The backbone's stages inside a detector, the first of which may be frozen."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet
from torchvision.ops.misc import FrozenBatchNorm2d


class Stages(nn.Module):
    """Stem and first layers of a ResNet, under torchvision's names.

    Args:
        resnet: its layers become part of this module.
        layers: how many of its four.
        freeze_at: so many stages, the stem first, keep their weights and batch norm statistics
            (detectron2, MODEL.BACKBONE.FREEZE_AT).
    """

    def __init__(self, resnet: ResNet, layers: int, freeze_at: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.names = [f"layer{i}" for i in range(1, layers + 1)]
        for name in self.names:
            self.add_module(name, getattr(resnet, name))
        self.channels = [channels(getattr(resnet, name)) for name in self.names]
        for stage in [["conv1", "bn1"], *([name] for name in self.names)][:freeze_at]:
            for name in stage:
                self.add_module(name, _frozen(getattr(self, name)).requires_grad_(False))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to the output of each layer, of strides 4, 8, 16, 32."""
        out = F.max_pool2d(F.relu(self.bn1(self.conv1(images)), inplace=True), 3, 2, 1)
        outputs = []
        for name in self.names:
            out = getattr(self, name)(out)
            outputs.append(out)
        return outputs


def channels(layer: nn.Module) -> int:
    """Output channels of a residual layer: those of its last batch norm."""
    return [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features


@torch.no_grad()
def _frozen(module: nn.Module) -> nn.Module:
    """``module`` with its batch norms turned into ones that are never trained."""
    if not isinstance(module, nn.BatchNorm2d):
        for name, child in module.named_children():
            module.add_module(name, _frozen(child))
        return module
    frozen = FrozenBatchNorm2d(module.num_features, module.eps)
    frozen.load_state_dict(module.state_dict())
    return frozen
