"""Which detector a configuration asks for."""

from torchvision.models.resnet import ResNet

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.c4 import C4


def build_detector(resnet: ResNet, classes: int, config: DetectConfig) -> C4:
    """The untrained detector around ``resnet``, whose layers become part of it."""
    return C4(resnet, classes, config)
