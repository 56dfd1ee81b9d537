"""FCNs on a dilated ResNet: mmselfsup's fcn_r50-d8 and the FCN-16s of MoCo's paper."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet
from torchvision.ops import Conv2dNormActivation

from eval_segmentation.config import SegmentConfig
from siambench.backbone import Backbone
from siambench.resnet import build_resnet


def dilate(resnet: ResNet, output_stride: int = 8, contract: bool = True) -> None:
    """Turn the last strides of ``resnet`` into dilations, in place: output stride 8 or 16, not 32.

    With ``contract`` a 3×3 convolution that lost its stride still reads the finer map as before, so it
    takes the dilation of the layer before, and all after it take their own layer's. Every second
    (or fourth) output then is the undilated network's, so pre-trained weights keep their meaning. On
    bottleneck blocks this is mmsegmentation's ``contract_dilation`` and torchvision's
    ``replace_stride_with_dilation``; unlike those it works for basic blocks too.

    Args:
        output_stride: 8 (dilations 2 and 4 in layer3 and layer4) or 16 (2 in layer4).
        contract: if not, every 3×3 convolution takes its own layer's dilation, as detectron2's
            RES5_DILATION and MoCo's paper (appendix A.5) have it.
    """
    layers = (resnet.layer3, resnet.layer4) if output_stride == 8 else (resnet.layer4,)
    before = 1
    for layer in layers:
        dilation = 2 * before
        for conv in (m for m in layer.modules() if isinstance(m, nn.Conv2d)):
            strided, conv.stride = conv.stride != (1, 1), (1, 1)
            if conv.kernel_size == (3, 3):
                side = before if strided and contract else dilation
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
        self,
        inputs: int,
        channels: int,
        classes: int,
        *,
        convs: int,
        concat: bool = False,
        dilation: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sides = [inputs] + [channels] * convs
        self.convs = nn.Sequential(
            *(Conv2dNormActivation(a, b, 3, dilation=dilation) for a, b in pairwise(sides))
        )
        self.cat = Conv2dNormActivation(inputs + channels, channels, 3) if concat else None
        self.dropout = dropout
        self.classifier = nn.Conv2d(channels, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """(N, inputs, h, w) to logits (N, classes, h, w); ``seeds`` of the images' dropout, in training."""
        x = self.convs(maps)
        if self.cat is not None:
            x = self.cat(torch.cat([maps, x], dim=1))
        if self.training and self.dropout:
            x = x * _kept_channels(x.shape[1], self.dropout, seeds).to(x, non_blocking=True)
        return self.classifier(x)


def _kept_channels(channels: int, dropout: float, seeds: Sequence[int]) -> Tensor:
    """(N, channels, 1, 1): 0 for the channels an image loses, 1 / (1 - dropout) for the others.

    An image's draw depends on its seed alone: the same in whichever process, on whichever device.
    """
    draws = [torch.rand(channels, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return (torch.stack(draws) >= dropout).float()[..., None, None] / (1 - dropout)


class FCN(nn.Module):
    """Dilated backbone, head on layer4, perhaps an auxiliary head on layer3; everything is trained.

    Args:
        backbone: where the weights come from; it is left as it is.
        classes: number of classes.
        config: the network's part of the protocol.
    """

    def __init__(self, backbone: Backbone, classes: int, config: SegmentConfig) -> None:
        super().__init__()
        self.resnet = build_resnet(backbone.meta.arch)
        self.resnet.load_state_dict(backbone.resnet.state_dict())
        dilate(self.resnet, config.output_stride, config.contract_dilation)
        self.head = FCNHead(
            backbone.dim,
            config.head_channels,
            classes,
            convs=config.head_convs,
            concat=config.head_concat,
            dilation=config.head_dilation,
            dropout=config.dropout,
        )
        self.aux = (
            FCNHead(
                backbone.dim // 2, config.aux_channels, classes, convs=1, dropout=config.dropout
            )
            if config.aux_weight
            else None
        )

    def forward(self, images: Tensor, seeds: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
        """Logits at the output stride.

        Args:
            images: normalised, (N, 3, H, W).
            seeds: (N,) of the images' dropout; needed in training only.

        Returns:
            The head's and, in training only, the auxiliary head's: each (N, classes, ⌈H/stride⌉,
            ⌈W/stride⌉), the latter at layer3's stride.
        """
        net = self.resnet
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        layer3 = net.layer3(net.layer2(net.layer1(x)))
        logits = self.head(net.layer4(layer3), seeds)
        if not self.training or self.aux is None:
            return logits, None
        return logits, self.aux(layer3, [seed + 1 for seed in seeds])


def enlarge(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Logits (N, C, h, w) to (N, C, *size), bilinear, float32."""
    logits = logits.float()
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
