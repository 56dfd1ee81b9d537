"""A run small enough for a second."""

import pytest

from pretrain.config import AugmentConfig, PretrainConfig


@pytest.fixture
def config(scenes, tmp_path):
    return PretrainConfig(
        data=str(scenes / "imagenet"),
        out=str(tmp_path / "run"),
        arch="resnet10-w8",
        epochs=4,
        batch_size=20,
        dim=16,
        pred_dim=4,
        augment=AugmentConfig(crop=24, resize=24, recolour=0.5, rotate=5.0),
        knn_every=2,
        knn_images=40,
        device="cpu",
        workers=0,
    )
