"""An FCN on a ResNet dilated to stride 8, as mmselfsup's fcn_r50-d8."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet
from torchvision.ops import Conv2dNormActivation

from siambench.backbone import Backbone
from siambench.resnet import build_resnet


def dilate(resnet: ResNet) -> None:
    """Turn the strides of layer3 and layer4 into dilations 2 and 4, in place: output stride 8, not 32.

    A 3×3 convolution that lost its stride still reads the finer map, so it takes the dilation of the
    layer before (1, then 2), and all after it take their own layer's. Every eighth-stride output
    then holds the undilated network's output at its fourth positions, so pre-trained weights keep
    their meaning. On bottleneck blocks this is mmsegmentation's ``contract_dilation`` (the first
    block of a dilated layer has half the dilation) and torchvision's
    ``replace_stride_with_dilation``; unlike those it works for basic blocks too.
    """
    before = 1
    for layer, dilation in ((resnet.layer3, 2), (resnet.layer4, 4)):
        for conv in (m for m in layer.modules() if isinstance(m, nn.Conv2d)):
            strided, conv.stride = conv.stride != (1, 1), (1, 1)
            if conv.kernel_size == (3, 3):
                side = before if strided else dilation
                conv.dilation = conv.padding = (side, side)
        before = dilation


class FCNHead(nn.Module):
    """3×3 convolutions, then a classifier of each position.

    Convolutions have batch norm and ReLU; with ``concat`` one more reads the input and the last
    output together. Sources: mmsegmentation, mmseg/models/decode_heads/fcn_head.py and
    decode_head.py (dropout of whole channels; classifier drawn from N(0, 0.01²)), mmcv's ConvModule
    (Kaiming normal, fan out).
    """

    def __init__(
        self, inputs: int, channels: int, classes: int, convs: int, concat: bool, dropout: float
    ) -> None:
        super().__init__()
        sides = [inputs] + [channels] * convs
        self.convs = nn.Sequential(*(Conv2dNormActivation(a, b, 3) for a, b in pairwise(sides)))
        self.cat = Conv2dNormActivation(inputs + channels, channels, 3) if concat else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, h, w) to logits (N, classes, h, w)."""
        x = self.convs(maps)
        if self.cat is not None:
            x = self.cat(torch.cat([maps, x], dim=1))
        return self.classifier(self.dropout(x))


class FCN(nn.Module):
    """Dilated backbone, head on layer4, auxiliary head on layer3; everything is trained.

    Args:
        backbone: where the weights come from; it is left as it is.
        classes: number of classes.
        head_channels, head_convs, aux_channels, dropout: as in ``SegmentConfig``.
        aux: whether there is an auxiliary head.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        head_channels: int = 512,
        head_convs: int = 2,
        aux_channels: int = 256,
        dropout: float = 0.1,
        aux: bool = True,
    ) -> None:
        super().__init__()
        self.resnet = build_resnet(backbone.meta.arch)
        self.resnet.load_state_dict(backbone.resnet.state_dict())
        dilate(self.resnet)
        dim = backbone.dim
        self.head = FCNHead(dim, head_channels, classes, head_convs, True, dropout)
        self.aux = FCNHead(dim // 2, aux_channels, classes, 1, False, dropout) if aux else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits at stride 8.

        Args:
            images: normalised, (N, 3, H, W).

        Returns:
            The head's and, in training only, the auxiliary head's: each (N, classes, ⌈H/8⌉, ⌈W/8⌉).
        """
        net = self.resnet
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        layer3 = net.layer3(net.layer2(net.layer1(x)))
        logits = self.head(net.layer4(layer3))
        return logits, self.aux(layer3) if self.training and self.aux is not None else None


def enlarge(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Logits (N, C, h, w) to (N, C, *size), bilinear, float32."""
    logits = logits.float()
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def segmentation_loss(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Cross-entropy of logits (N, C, H, W) summed over labelled pixels, divided by *all* pixels.

    An ignored pixel counts as a loss of 0, which is not torch's mean: mmsegmentation's default
    (mmseg/models/losses/cross_entropy_loss.py, ``avg_non_ignore=False``).
    """
    total = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum")
    return total / labels.numel()
