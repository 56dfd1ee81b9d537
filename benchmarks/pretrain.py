"""Pre-training: images a second of our loop against the official script's, on one machine in one run.

Usage: python benchmarks/pretrain.py [--arch resnet18] [--crop 64] [--batch 64] [--steps 10]
       [--rounds 3] [--device auto] [--workers -1] [--processes 0] [--compile] [--methods]

The files are the 500 x 375 JPEGs of benchmarks/views.py. Each row is a process of its own, the rows
take turns; printed are the median over rounds with lowest and highest, the ratio to the official loop
of the same kind, the share of the time outside the method's forward and backward passes and in waiting
for data, and the peak memory (of the GPU, else resident). ``--processes N`` adds N processes with and
without synchronised batch norm. An image is two views. ``--methods`` measures every method instead, with the
heads, optimiser and options of its ImageNet preset, in bf16 on views in memory, against SimSiam.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: it has a pretrain.py

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import pretrain.run
from benchmarks.views import IMAGES, official, write_images
from pretrain import VERBS
from pretrain.config import AugmentConfig, PretrainConfig
from pretrain.loop import train
from pretrain.methods import build_method
from siambench.config import make_config
from siambench.device import peak_memory_bytes, pick_device, reset_peak_memory, share_cores
from siambench.distributed import join
from siambench.progress import set_quiet

WARM = 3  # steps that are not timed
# ResNet-50, 224 px, one H200: 790 TFLOP/s over 2 views x 24.5 GFLOP; 4.3 TB/s over the bytes that the
# activations of an image's two views move, with each operation on its own, and with BN + ReLU + add fused
FLOORS = {"arithmetic": 16_100, "memory, unfused": 4_570, "memory, fused": 6_510}
ROWS = {
    "official loop, views in memory": {"peer": True, "memory": True},
    "ours, float32, views in memory": {"memory": True},
    "ours, bf16, views in memory": {"memory": True, "bf16": True},
    "official loop, from JPEGs": {"peer": True},
    "ours, bf16, --views device": {"bf16": True},
    "ours, bf16, --views cpu": {"bf16": True, "views": "cpu"},
}
METHODS = {
    name: {"memory": True, "preset": f"in1k-{preset}"}
    for name, preset in {
        "SimSiam": "simsiam-100e",
        "SimCLR": "simclr-100e",
        "MoCo v2, symmetric": "mocov2-100e-symmetric",
        "MoCo v2": "mocov2-200e",
        "BYOL": "byol-100e",
        "SwAV": "swav-400e",
        "Barlow Twins": "barlow-twins-1000e",
        "VICReg": "vicreg-100e",
        "SimSiam, alternating": "simsiam-100e-10-step",
        "SimSiam, moving average": "simsiam-100e-moving-average",
    }.items()
}
SEVERAL = {
    "each batch norm its own": {"local": True, "memory": True},
    "synchronised batch norm": {"memory": True},
}


class Clock:
    """What happens when: on the host for a CPU, by events for a GPU, which runs behind the host."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.device = device.type == "cuda", device
        self.passes: list[tuple[Any, Any]] = []  # forward and backward passes: start, end
        self.waited = self.start = 0.0

    def mark(self) -> Any:
        """Now."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, its time noted."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = self.mark()
            made = work(*arguments, **named)
            self.passes.append((start, self.mark()))
            return made

        return timed

    def through(self, batches: Iterator[Any], steps: int) -> Iterator[Any]:
        """``batches``; the clock starts after WARM of them."""
        for number in range(steps + WARM):
            if number == WARM:
                self.settle()
                reset_peak_memory(self.device)
                self.passes, self.waited, self.start = [], 0.0, time.perf_counter()
            before = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - before
            yield batch

    def settle(self) -> None:
        """Wait for the GPU."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def result(self, images: int) -> dict[str, float]:
        """Images a second and shares, since the start."""
        self.settle()
        total = time.perf_counter() - self.start
        passes = sum((a.elapsed_time(b) / 1e3) if self.cuda else b - a for a, b in self.passes)
        return {
            "images_per_second": images / total,
            "outside": 1 - passes / total,
            "waited": self.waited / total,
            "memory": peak_memory_bytes(self.device),
        }


class OfficialFiles(Dataset[list[Tensor]]):
    """The official pipeline over files, as often as they are asked for."""

    def __init__(self, paths: list[Path], crop: int, length: int) -> None:
        self.paths, self.two, self.length = paths, official(crop), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.two(self.paths[index % len(self.paths)])


def peer(config: PretrainConfig, paths: list[Path], memory: bool, steps: int) -> dict[str, float]:
    """The loop of facebookresearch/simsiam, main_simsiam.py: float32, the loss read at every step."""
    device = pick_device(config.device)
    workers = share_cores(config.workers, device)
    torch.manual_seed(0)
    method = build_method(config, 2, 100).to(device).train()
    lr = config.base_lr * config.batch_size / 256
    optimizer = torch.optim.SGD(
        method.param_groups(), lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    torch.backends.cudnn.benchmark = True
    clock = Clock(device)
    torch.Tensor.backward = clock.around(torch.Tensor.backward)  # type: ignore[method-assign]
    method.forward = clock.around(method.forward)  # type: ignore[method-assign]
    if memory:
        side = config.augment.crop
        views = [torch.randn(config.batch_size, 3, side, side, device=device)] * 2
        batches: Iterator[list[Tensor]] = itertools.repeat(views)
    else:
        files = OfficialFiles(paths, config.augment.crop, config.batch_size * (steps + WARM))
        loader = DataLoader(
            files,
            config.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        batches = iter(loader)
    for images in clock.through(batches, steps):
        moved = [view.to(device, non_blocking=True) for view in images]
        loss, _ = method(moved, None)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return clock.result(steps * config.batch_size)


def ours(config: PretrainConfig, memory: bool, local: bool, steps: int) -> dict[str, float]:
    """Our loop, whole but for writing checkpoints."""
    if local:
        pretrain.run.sync_batchnorm = lambda model, world: model
    with join(config.device) as world:
        run = pretrain.run.lay_out(config, world, pretrain.run.open_data(config))
        clock = Clock(world.device)
        torch.Tensor.backward = clock.around(torch.Tensor.backward)  # type: ignore[method-assign]
        run.method.forward = clock.around(run.method.forward)  # type: ignore[method-assign]
        if memory:
            side, count = config.augment.crop, config.batch_size // world.size
            view = torch.randn(count, 3, side, side, device=world.device)
            view = view.contiguous(memory_format=torch.channels_last)
            labels = torch.zeros(count, dtype=torch.long, device=world.device)
            images = (torch.arange(count, device=world.device),) * run.method.per_image
            run.batches = itertools.repeat(([view, view], labels, *images))
        run.batches = clock.through(run.batches, steps)
        Path(config.out).mkdir(exist_ok=True)
        run.watch.open(0)
        run.save = lambda: Path()  # type: ignore[method-assign]
        train(run)
        return {**clock.result(steps * config.batch_size), "first": world.rank == 0}


def one(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Measure one row; print the result as JSON."""
    set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        (source := Path(folder) / "jpegs").mkdir()
        files = [source / name for name in write_images(source).paths]
        for number in range(options.batch * (options.steps + WARM)):  # one epoch, two classes
            link = Path(folder) / "train" / "ab"[number % 2] / f"{number}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(files[number % IMAGES])
        config = replace(
            _recipe(row.get("preset", ""), options.batch),
            data=folder,
            out=f"{folder}/out",
            arch=options.arch,
            epochs=1,
            warmup_epochs=0,
            batch_size=options.batch,
            augment=AugmentConfig(crop=options.crop),
            views=row.get("views", "device"),
            bf16=row.get("bf16", "preset" in row),
            compile=options.compile and not row.get("peer", False),
            knn_every=0,
            log_every=10,
            device=options.device,
            workers=options.workers,
        )
        if row.get("peer"):
            found = peer(config, files, row.get("memory", False), options.steps)
        else:
            found = ours(config, row.get("memory", False), row.get("local", False), options.steps)
        if found.get("first", True):
            print(json.dumps(found))


def _recipe(preset: str, batch: int) -> PretrainConfig:
    """The preset's settings, or SimSiam's; what hangs on the size of its batch fitted to this one."""
    if not preset:
        return PretrainConfig(data="", fix_pred_lr=True)
    config: PretrainConfig = make_config(VERBS["pretrain"], {"data": "", "preset": preset})
    fitted = {"bn_groups": min(8, batch // 2)} if "bn_groups" in config.options else {}
    return replace(config, base_lr=0.01, options=config.options | fitted)


def compare(rows: dict[str, Any], options: argparse.Namespace, launcher: list[str]) -> None:
    """Measure all rows in turn, ``rounds`` times, and print them."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    without = ("row", "compile", "methods")
    arguments = [f"--{k}={v}" for k, v in vars(options).items() if k not in without]
    arguments += ["--compile"] * options.compile
    for _ in range(options.rounds):
        for name, row in rows.items():
            command = [sys.executable, *launcher, __file__, *arguments, f"--row={json.dumps(row)}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print("\nimages/s: median (lowest to highest), ratio to the first above of its kind")
    first: list[float] = []
    for name, found in results.items():
        rates = [f["images_per_second"] for f in found]
        if name.startswith("official") or not first:
            first = rates
        ratio = statistics.median(a / b for a, b in zip(rates, first, strict=True))
        outside, waited = (statistics.median(f[k] for f in found) for k in ("outside", "waited"))
        print(
            f"{name:32} {statistics.median(rates):8.2f} ({min(rates):.2f} to {max(rates):.2f})  "
            f"x{ratio:.2f}  outside passes {outside:5.1%}, of it data {waited:5.1%}  "
            f"{max(f['memory'] for f in found) / 2**30:.2f} GiB"
        )
        if options.arch == "resnet50" and options.crop == 224 and "H200" in _gpu():
            shares = ", ".join(
                f"{statistics.median(rates) / f:.0%} of {k}" for k, f in FLOORS.items()
            )
            print(f"{'':32} {shares}")


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def main() -> None:
    """Parse, then measure one row or compare all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="resnet18")
    for name, default in [("crop", 64), ("batch", 64), ("steps", 10), ("rounds", 3)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--row", default="")
    options = parser.parse_args()
    if options.row:
        one(json.loads(options.row), options)
        return
    print(
        f"{'methods' if options.methods else 'SimSiam'}, {options.arch}, {options.crop} px, batch {options.batch}, {options.steps} steps, "
        f"{options.rounds} rounds, torch {torch.__version__}, {_gpu() or 'CPU'}"
    )
    compare(METHODS if options.methods else ROWS, options, [])
    if options.processes:
        print(f"\n{options.processes} processes, the same global batch:")
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(options.processes)]
        compare(SEVERAL, options, launcher)


if __name__ == "__main__":
    main()
