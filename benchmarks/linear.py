"""The linear probe: extraction against the bare forward pass, a sweep on the cache against the official loop.

Usage: python benchmarks/linear.py [--arch resnet50] [--crop 224] [--images 384] [--rounds 3]
       [--device auto] [--agree DATA --backbone FILE]

The files are the 500 x 375 JPEGs of benchmarks/views.py, as often as ``--images`` asks for. Everything
in one process, in turn; printed are medians over rounds with lowest and highest. The official loop is
that of facebookresearch/simsiam, main_lincls.py, for one learning rate: every epoch decodes, augments
and runs the network; all its epochs cost the same, so one is timed and counted 90 times (without the
pass over val that it makes after each). Ours is a sweep of ten rates, with the held-out twins twenty
heads, over 90 epochs of a memory-mapped table of cached features, with the choice, timed whole.
``--agree`` instead trains both on the centre crops of a data set, so that the augmentation is equal,
and prints the two accuracies.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: it has a linear.py

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.views import IMAGES, write_images
from eval_linear.config import LinearConfig
from eval_linear.linear import evaluate, open_data
from eval_linear.probe import Probe, train
from eval_linear.scores import hold_out, score
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from siambench.cache import _BATCH, cached_features
from siambench.checkpoints.source import load_backbone
from siambench.data.pictures import FileImages, Images
from siambench.device import pick_device, share_cores
from siambench.evaluation import Job
from siambench.features import ImageFiles, LayerFeatures, center_crop_transform, normalise
from siambench.progress import set_quiet

EPOCHS = 90
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
ROWS = 1024  # cached features that the sweep is timed on


class Official(Dataset[tuple[Tensor, int]]):
    """Files as main_lincls.py prepares them."""

    def __init__(self, images: Images, labels: np.ndarray, crop: int, augment: bool = True) -> None:
        self.images, self.labels = images, labels
        random = [transforms.RandomResizedCrop(crop), transforms.RandomHorizontalFlip()]
        still = [
            transforms.Resize(crop * 256 // 224 if augment else crop),
            transforms.CenterCrop(crop),
        ]
        last = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.transform = transforms.Compose([*(random if augment else still), *last])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = f"{self.images.root}/{self.images.name(index)}"  # type: ignore[attr-defined]
        with open(path, "rb") as handle:
            picture = Image.open(handle).convert("RGB")
        return self.transform(picture), int(self.labels[index])


def official_model(backbone: Backbone, classes: int) -> nn.Module:
    """The network in evaluation mode with a new fc, which alone learns."""
    net = nn.Sequential(
        *list(backbone.resnet.children())[:8], nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    fc = nn.Linear(backbone.dim, classes)
    fc.weight.data.normal_(0, 0.01)
    fc.bias.data.zero_()
    return nn.Sequential(net, fc).to(next(backbone.parameters()).device).eval()


def official_epoch(
    model: nn.Module, loader: DataLoader, sgd: torch.optim.Optimizer, device: torch.device
) -> None:
    """One epoch of main_lincls.py: accuracies are read at every step."""
    for images, target in loader:
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        output = model(images)
        loss = F.cross_entropy(output, target)
        with torch.no_grad():
            best = output.topk(min(5, output.shape[1]), 1).indices
            (best == target[:, None]).float().sum(0).cpu()
        loss.item()
        sgd.zero_grad()
        loss.backward()
        sgd.step()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def shown(values: list[float], digits: int = 1) -> str:
    """Median (lowest to highest)."""
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


class Table:
    """The short road over a table of features as the cache keeps it, without images behind it."""

    def __init__(self, folder: Path, features: Tensor) -> None:
        np.save(folder / "features.npy", features.cpu().numpy())
        mapped = torch.from_numpy(np.load(folder / "features.npy", mmap_mode="c"))
        self.features = mapped.to(features.device)

    def train(self, epoch: int, batches: list[np.ndarray]) -> Iterator[Tensor]:
        """Rows of the batches."""
        for batch in batches:
            yield self.features[torch.from_numpy(batch).to(self.features.device)].float()

    def center(self, split: str, batches: list[np.ndarray]) -> Iterator[Tensor]:
        """The same."""
        return self.train(0, batches)


def extraction(options: argparse.Namespace, folder: Path, job: Job) -> dict[str, list[float]]:
    """Images a second: the bare forward pass and the cache, float32 and bf16, in turn."""
    backbone = load_backbone(f"random:{options.arch}").to(job.device)
    listed = write_images(folder)
    images = FileImages(folder, [listed.paths[i % IMAGES] for i in range(options.images)])
    transform = center_crop_transform(options.crop * 256 // 224, options.crop)
    batch = _BATCH[job.device.type]
    pixels = torch.stack([transform(images[i]) for i in range(min(batch, IMAGES))])
    pixels = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch].to(job.device)
    ready = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD).to(memory_format=torch.channels_last)
    found: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):  # the first is to warm up
        for precision in ("float32", "bf16"):
            encoder = LayerFeatures(backbone, ["avgpool"], options.crop, precision)

            def bare(encoder: LayerFeatures = encoder) -> None:
                with torch.no_grad():
                    for _ in range(0, options.images, batch):
                        encoder(ready)

            def ours(encoder: LayerFeatures = encoder, number: int = number) -> None:
                place = Job(
                    0, 0, job.device, job.workers, folder / f"{number}" / "j" / "j", "k", ""
                )
                cached_features(encoder, {"t": ImageFiles(images, transform)}, "float16", place)

            passes = -(-options.images // batch) * batch
            for name, count, work in (("bare", passes, bare), ("cache", options.images, ours)):
                rate = count / seconds(work, job.device)
                if number:
                    found.setdefault(f"{name}, {precision}", []).append(rate)
    return found


def official_rate(options: argparse.Namespace, folder: Path, job: Job) -> list[float]:
    """Images a second of the official loop, one learning rate."""
    backbone = load_backbone(f"random:{options.arch}").to(job.device)
    listed = write_images(folder)
    images = FileImages(folder, [listed.paths[i % IMAGES] for i in range(options.images)])
    model = official_model(backbone, 1000)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.6, momentum=0.9)
    loader = DataLoader(
        Official(images, np.arange(options.images) % 1000, options.crop),
        min(256, options.images // 4),
        shuffle=True,
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )
    rates = []
    for number in range(options.rounds + 1):
        spent = seconds(lambda: official_epoch(model, loader, sgd, job.device), job.device)
        if number:
            rates.append(options.images / spent)
    return rates


def sweep_seconds(options: argparse.Namespace, classes: int, folder: Path, job: Job) -> list[float]:
    """Seconds per 1,000 images of a sweep of ten rates over 90 epochs of cached features."""
    encoder = LayerFeatures(load_backbone(f"random:{options.arch}"), ["avgpool"], options.crop)
    config = LinearConfig("b", "d", base_lr=RATES, epochs=EPOCHS)
    features = torch.randn(ROWS, encoder.dims[0]).abs().half().to(job.device)
    labels = np.arange(ROWS) % classes
    found = []
    for number in range(options.rounds):
        place = Job(0, 0, job.device, 0, folder / f"sweep{classes}-{number}" / "j" / "j", "k", "")
        probe = Probe(encoder, classes, config, place)
        held = hold_out(labels, config.holdout, 0)
        table = Table(folder, features)

        def work(probe=probe, table=table, place=place, held=held) -> None:  # type: ignore[no-untyped-def]
            train(probe, table, labels, held, config, place)  # type: ignore[arg-type]
            score(probe, table, "train", labels, np.flatnonzero(held))  # type: ignore[arg-type]

        found.append(1000 / ROWS * seconds(work, job.device))
    return found


def agree(options: argparse.Namespace, folder: Path, job: Job) -> None:
    """Accuracy of the official loop and of ours, both on centre crops, at one rate."""
    config = LinearConfig(
        options.backbone,
        options.agree,
        base_lr=1.0,
        epochs=EPOCHS,
        resize=options.crop,
        crop=options.crop,
        out=str(folder),
    )
    data, backbone = open_data(config), load_backbone(config.backbone).to(job.device)
    metrics = {}
    ours = seconds(lambda: metrics.update(ours=evaluate(backbone, data, config, job)), job.device)
    top1 = next(m.value for m in metrics["ours"] if m.name == "top1")
    torch.manual_seed(0)
    model = official_model(backbone, len(data.classes))
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS)
    sets = [
        Official(split.images, split.labels, options.crop, augment=False)
        for split in (data.train, data.test)
    ]
    start = time.perf_counter()
    for _ in range(EPOCHS):
        loader = DataLoader(sets[0], 256, shuffle=True, num_workers=job.workers)
        official_epoch(model, loader, sgd, job.device)
        cosine.step()
    spent = time.perf_counter() - start
    right = 0
    with torch.no_grad():
        for images, target in DataLoader(sets[1], 256, num_workers=job.workers):
            right += int((model(images.to(job.device)).argmax(1).cpu() == target).sum())
    theirs = 100 * right / len(sets[1])
    print(f"centre crops, {EPOCHS} epochs, rate 1.0, {len(sets[0])} / {len(sets[1])} images:")
    print(f"official loop {theirs:.2f} % in {spent:.1f} s; ours {top1:.2f} % in {ours:.1f} s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--agree", default="")
    parser.add_argument("--backbone", default="")
    options = parser.parse_args()
    set_quiet(True)
    device = pick_device(options.device)
    workers = share_cores(-1, device)
    print(f"{device}, {torch.get_num_threads()} compute threads, {workers} loader processes\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(0, 0, device, workers, folder / "jobs" / "job", "key", "")
        if options.agree:
            agree(options, folder, job)
            return
        found = extraction(options, folder, job)
        print(f"| {options.arch}, {options.crop} px | images/s | of the bare pass |\n|---|---|---|")
        for row, values in found.items():
            bare = found["bare, " + row.split(", ")[1]]
            share = statistics.median(values) / statistics.median(bare)
            print(f"| {row} | {shown(values)} | {100 * share:.1f} % |")
        rates = official_rate(options, folder, job)
        per_thousand = 1000 * EPOCHS / statistics.median(rates)
        extract = 1000 / statistics.median(found["cache, float32"])
        print(
            f"\nofficial loop: {shown(rates)} images/s; 90 epochs of 1,000 images {per_thousand:.0f} s\n"
        )
        header = (
            "sweep of 10 rates, 90 epochs, 1,000 images: s | times faster | with the extraction"
        )
        print(f"| classes | {header} |\n|---|---|---|---|")
        for classes in (10, 100, 1000):
            spent = sweep_seconds(options, classes, folder, job)
            middle = statistics.median(spent)
            print(
                f"| {classes} | {shown(spent, 2)} | {per_thousand / middle:.0f} | "
                f"{per_thousand / (middle + extract):.0f} |"
            )


if __name__ == "__main__":
    main()
