"""Which detector a configuration asks for."""

from torchvision.models.resnet import ResNet

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.c4 import c4
from eval_detection.torchvision_engine.detector import Detector
from eval_detection.torchvision_engine.fpn import fpn


def build_detector(resnet: ResNet, classes: int, config: DetectConfig) -> Detector:
    """The untrained detector around ``resnet``, whose layers become part of it.

    Args:
        resnet: bottleneck or basic blocks, any width.
        classes: number of foreground classes.
        config: its network, norms, frozen stages and everything that training and test need.
    """
    return (fpn if config.network == "fpn" else c4)(resnet, classes, config)
