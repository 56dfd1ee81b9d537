"""What the SimSiam paper's figure 2 watches beside the loss: spread of the output, kNN accuracy."""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pretrain.config import PretrainConfig
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD
from siambench.data.images import ImageList
from siambench.data.pictures import FileImages
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

    The bank is of the training split, the queries of the validation split, which is never trained
    on. Temperature and k as in DINO (facebookresearch/dino, eval_knn.py).

    In the background (the default beside a GPU) it works in a thread, on a copy of the backbone and a
    stream of its own, while the training goes on; its images stay decoded in memory (3 * crop**2
    bytes each). On a CPU, where training has every core, it takes its turn.
    """

    def __init__(
        self,
        train: ImageList,
        val: ImageList,
        config: PretrainConfig,
        device: torch.device,
        workers: int,
        background: bool | None = None,
    ) -> None:
        self.device, self.workers, self.bf16 = device, workers, config.bf16
        if background is None:
            background = device.type == "cuda"
        self.thread = ThreadPoolExecutor(1) if background else None
        rng = np.random.default_rng([config.seed, 3])
        transform = center_crop_transform(config.augment.resize, config.augment.crop)
        self.files: list[Dataset[Tensor]] = []
        self.labels = []
        for images in (train, val):
            chosen = np.sort(rng.permutation(len(images))[: config.knn_images])
            paths = [images.paths[i] for i in chosen]
            files = ImageFiles(FileImages(images.root, paths), transform)
            self.files.append(_Decoded(files, workers) if background else files)
            self.labels.append(np.array(images.labels)[chosen])
        self.at_work: dict[int, tuple[nn.Module, Future[float]]] = {}

    def start(self, epoch: int, backbone: nn.Module) -> None:
        """Measure ``backbone`` as it is now, after ``epoch`` epochs."""
        frozen = copy.deepcopy(backbone).eval()
        result: Future[float]
        if self.thread is not None:
            result = self.thread.submit(self._beside, frozen, self._copied())
        else:
            result = Future()
            result.set_result(self.accuracy(frozen))
        self.at_work[epoch] = (frozen, result)

    def wait(self) -> None:
        """Wait for what is at work."""
        for _, result in self.at_work.values():
            result.exception()

    def finished(self) -> dict[int, float]:
        """Epoch to accuracy in percent, of what was started, is done, and was not collected yet."""
        done = {epoch: result for epoch, (_, result) in self.at_work.items() if result.done()}
        for epoch in done:
            del self.at_work[epoch]
        return {epoch: result.result() for epoch, result in done.items()}

    def state(self) -> dict[int, Any]:
        """Epoch to weights of what is still at work: a restart begins it again."""
        return {epoch: frozen.state_dict() for epoch, (frozen, _) in self.at_work.items()}

    def resume(self, state: dict[int, Any], backbone: nn.Module) -> None:
        """Begin again what :meth:`state` said was at work."""
        for epoch, weights in state.items():
            frozen = copy.deepcopy(backbone)
            frozen.load_state_dict(weights)
            self.start(epoch, frozen)

    def accuracy(self, frozen: nn.Module) -> float:
        """Top-1 accuracy in percent of a backbone in evaluation mode."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = [self._features(frozen, files) for files in self.files]
        k = min(20, len(features[0]))
        found = knn_accuracy(
            features[0],
            self.labels[0],
            features[1],
            self.labels[1],
            ks=[k],
            temperatures=[0.07],
            device=self.device,
        )
        return found[(k, 0.07)]

    def _features(self, frozen: nn.Module, files: Dataset[Tensor]) -> np.ndarray:
        return extract(
            frozen,
            files,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            device=self.device,
            workers=0 if self.thread else self.workers,
            title="",
        )

    def _copied(self) -> torch.cuda.Event | None:
        """The moment when the training's stream has copied the weights."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.current_stream(self.device).record_event()

    def _beside(self, frozen: nn.Module, copied: torch.cuda.Event | None) -> float:
        if copied is None:
            return self.accuracy(frozen)
        stream = torch.cuda.Stream(self.device)
        stream.wait_event(copied)
        with torch.cuda.stream(stream):
            return self.accuracy(frozen)


class _Decoded(Dataset[Tensor]):
    """Images decoded once and kept, since a thread beside a GPU may not start loader processes."""

    def __init__(self, files: ImageFiles, workers: int) -> None:
        side = files[0].shape
        self.images = torch.empty((len(files), *side), dtype=torch.uint8)
        start = 0
        for batch in DataLoader(files, 256, num_workers=workers):
            self.images[start : start + len(batch)] = batch
            start += len(batch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
