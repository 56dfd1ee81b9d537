"""What the SimSiam paper's figure 2 watches: loss, spread of the output, kNN accuracy."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD
from siambench.data.images import ImageList
from siambench.features import ImageFiles, center_crop_transform, extract
from siambench.knn import knn_accuracy


def output_std(z: Tensor) -> Tensor:
    """Std over the batch of each channel of the L2-normalised output, averaged over channels.

    0 when all outputs are one vector (collapse); 1/sqrt(d) when they are spread over the sphere
    (paper, section 4.1).

    Args:
        z: projections (N, d).

    Returns:
        A scalar tensor on z's device (no synchronisation).
    """
    return F.normalize(z.float(), dim=1).std(dim=0, unbiased=False).mean()


class KnnMonitor:
    """Accuracy of a 20-NN classifier (T = 0.07) on pooled features, on at most so many images.

    Temperature and k as in DINO (facebookresearch/dino, eval_knn.py).
    """

    def __init__(
        self, train: ImageList, val: ImageList, config: PretrainConfig, device: torch.device
    ) -> None:
        self.train, self.val, self.config, self.device = train, val, config, device
        rng = np.random.default_rng([config.seed, 3])
        self.chosen = [
            np.sort(rng.permutation(len(images))[: config.knn_images]) for images in (train, val)
        ]

    def __call__(self, backbone: nn.Module, workers: int) -> float:
        """Top-1 accuracy in percent of the backbone as it is now; its training mode is kept."""
        was_training = backbone.training
        backbone.eval()
        transform = center_crop_transform(self.config.augment.resize, self.config.augment.crop)
        features, labels = [], []
        for images, chosen in zip((self.train, self.val), self.chosen, strict=True):
            files = ImageFiles([images.root / images.paths[i] for i in chosen], transform)
            features.append(
                extract(
                    backbone,
                    files,
                    mean=IMAGENET_MEAN,
                    std=IMAGENET_STD,
                    device=self.device,
                    workers=workers,
                    title="",
                )
            )
            labels.append(np.array(images.labels)[chosen])
        backbone.train(was_training)
        k = min(20, len(features[0]))
        found = knn_accuracy(
            features[0], labels[0], features[1], labels[1], ks=[k], temperatures=[0.07]
        )
        return found[(k, 0.07)]
