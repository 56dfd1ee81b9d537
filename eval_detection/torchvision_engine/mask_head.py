"""The mask head: convolutions, an upsampling by two, a mask per class (Mask R-CNN, figure 4)."""

from collections import OrderedDict

from torch import nn

_CHANNELS = 256  # detectron2, MODEL.ROI_MASK_HEAD.CONV_DIM


def mask_head(channels: int, classes: int, convolutions: int) -> nn.Sequential:
    """From (R, channels, S, S) to logits (R, classes, 2S, 2S); detectron2's names and initialisation.

    Args:
        channels: of a region.
        classes: number of foreground classes.
        convolutions: 3×3 ones before the upsampling: 0 in a C4 network, 4 in an FPN.
    """
    parts: list[tuple[str, nn.Module]] = []
    for i in range(1, convolutions + 1):
        conv = nn.Conv2d(channels, _CHANNELS, 3, padding=1)
        parts += [(f"mask_fcn{i}", conv), (f"relu{i}", nn.ReLU(inplace=True))]
        channels = _CHANNELS
    parts += [
        ("deconv", nn.ConvTranspose2d(channels, _CHANNELS, 2, 2)),
        ("relu", nn.ReLU(inplace=True)),
        ("predictor", nn.Conv2d(_CHANNELS, classes, 1)),
    ]
    for name, layer in parts:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            if name == "predictor":
                nn.init.normal_(layer.weight, std=0.001)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(OrderedDict(parts))
