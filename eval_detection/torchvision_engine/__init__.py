"""The torchvision engine: the detectors assembled from torchvision's ResNet and operators."""
