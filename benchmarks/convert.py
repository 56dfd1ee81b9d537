"""Conversion: seconds after imports, and memory above the imports, against the script everyone writes.

Usage: OMP_NUM_THREADS=1 python benchmarks/convert.py [ROUNDS]. Linux only. Every measurement is a fresh
process that converts one file of a ResNet-50, ours and the script in turn; the files are in the page
cache. Memory is the highest resident set above that after the imports, pages of mapped files included,
as a multiple of the source file's size. The script loads, renames and saves: it recognises, checks and
digests nothing, and leaves it to the kernel when the file reaches the disk; ours waits for that (fsync).
"""

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # not this folder: this file's name is a room's

SOURCES = {  # file: what it is
    "resnet50.pth": "torch zip",
    "simsiam.pth.tar": "SimSiam checkpoint with optimiser",
    "legacy.pth": "torch legacy",
    "plain.safetensors": "safetensors",
    "detectron2.pkl": "detectron2 .pkl",
    "backbone.safetensors": "backbone file",
}
CONVERSIONS = [(source, "safetensors", "out.safetensors") for source in SOURCES]
CONVERSIONS += [
    ("backbone.safetensors", "torchvision", "out.pth"),
    ("backbone.safetensors", "timm", "out.safetensors"),
    ("backbone.safetensors", "detectron2-c4", "out.pkl"),
    ("backbone.safetensors", "detectron2-fpn", "out.pkl"),
]


def write_sources(folder: Path) -> None:
    """A ResNet-50 in every format; the checkpoint has SimSiam's projector, predictor and momentum."""
    import torch
    import torchvision
    from safetensors.torch import save_file
    from torch import nn

    from convert.config import ConvertConfig
    from convert.run import run

    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    state = model.state_dict()
    torch.save(state, folder / "resnet50.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")
    for out, to in ("backbone.safetensors", "safetensors"), ("detectron2.pkl", "detectron2-c4"):
        run(ConvertConfig(source=str(folder / "resnet50.pth"), out=str(folder / out), to=to))
    model.fc = nn.Sequential(
        nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(),
        nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(),
        nn.Linear(2048, 2048), nn.BatchNorm1d(2048, affine=False),
    )  # fmt: skip
    predictor = nn.Sequential(
        nn.Linear(2048, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 2048)
    )
    both = nn.ModuleDict({"encoder": model, "predictor": predictor})
    momentum = {
        i: {"momentum_buffer": torch.zeros_like(p)} for i, p in enumerate(both.parameters())
    }
    checkpoint = {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": {f"module.{name}": tensor for name, tensor in both.state_dict().items()},
        "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": list(momentum)}]},
    }
    torch.save(checkpoint, folder / "simsiam.pth.tar")


# torchvision's and detectron2's parts of names, to be replaced in this order.
RENAMES = [("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm")]
RENAMES += [(f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)]
RENAMES += [(f"layer{i}", f"res{i + 1}") for i in (1, 2, 3, 4)]


def script(source: Path, to: str, out: Path) -> None:
    """The script: load with the library's call, take a prefix off or rename, save with the library's."""
    import torch
    from safetensors.torch import load_file, save_file

    state: dict[str, Any]
    if source.suffix == ".pkl":
        with open(source, "rb") as handle:
            model = pickle.load(handle, encoding="latin1")["model"]
        state = {}
        for name, array in model.items():
            for torchvision, detectron2 in reversed(RENAMES):
                name = name.replace(detectron2, torchvision)
            state[name.removeprefix("stem.")] = torch.from_numpy(array)
    elif source.suffix == ".safetensors":
        state = load_file(source)
    else:
        state = torch.load(source, map_location="cpu", weights_only=True)
        if "state_dict" in state:
            prefix, state = "module.encoder.", state["state_dict"]
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    if to.startswith("detectron2"):
        arrays = {}
        for name, tensor in state.items():
            name = name if name.startswith("layer") else f"stem.{name}"
            for torchvision, detectron2 in RENAMES:
                name = name.replace(torchvision, detectron2)
            arrays[name] = tensor.numpy()
        content = {"model": arrays, "__author__": "script", "matching_heuristics": True}
        with open(out, "wb") as handle:
            pickle.dump(content, handle)
    elif out.suffix == ".pth":
        torch.save(state, out)
    else:
        save_file(state, out)


def ours(source: Path, to: Any, out: Path) -> None:
    """``siambench convert``."""
    from convert.config import ConvertConfig
    from convert.run import run

    run(ConvertConfig(source=str(source), to=to, out=str(out)))


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most since it was last reset."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def measure(who: str, source: str, to: str, out: str) -> None:
    """In a fresh process: import, convert once, print seconds and bytes as the last line."""
    import safetensors.torch
    import torch

    import convert.run

    assert safetensors.torch
    assert convert.run
    torch.set_num_threads(1)
    work: Callable[[Path, str, Path], None] = {"ours": ours, "script": script}[who]
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, start = resident("VmRSS"), time.perf_counter()
    work(Path(source), to, Path(out))
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resident("VmHWM") - before]))


def write_limit(folder: Path, size: int) -> float:
    """Seconds to write ``size`` bytes and wait for the disk."""
    content, start = os.urandom(size), time.perf_counter()
    with open(folder / "limit", "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    seconds = time.perf_counter() - start
    (folder / "limit").unlink()
    return seconds


def main(rounds: int) -> None:
    """Write the sources, then ``rounds`` of every conversion by both; print a Markdown table."""
    from siambench.checkpoints.source import read_checkpoint

    found: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
    limits = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redirect_stdout(None):
            write_sources(folder)
        weights = read_checkpoint(folder / "backbone.safetensors")[2].digest
        sizes = {source: (folder / source).stat().st_size for source in SOURCES}
        for turn in range(rounds):
            limits.append(write_limit(folder, sizes["backbone.safetensors"]))
            for source, to, out in CONVERSIONS:
                for who in ("ours", "script"):
                    arguments = [who, str(folder / source), to, str(folder / out)]
                    child = subprocess.run(
                        [sys.executable, __file__, "measure", *arguments],
                        check=True,
                        capture_output=True,
                        text=True,
                    )
                    if turn == 0:
                        assert read_checkpoint(folder / out)[2].digest == weights, arguments
                    (folder / out).unlink()
                    seconds, peak = json.loads(child.stdout.splitlines()[-1])
                    found.setdefault((source, to, who), []).append((seconds, peak))
    print(f"\nMedian of {rounds} rounds (lowest to highest), one thread")
    print("\n| from | to | MB | seconds | the script's | memory / file | the script's |")
    print("|---|---|---|---|---|---|---|")
    for source, to, _ in CONVERSIONS:
        times, memory = [], []
        for who in ("ours", "script"):
            seconds = [s for s, _ in found[source, to, who]]
            peak = statistics.median(p for _, p in found[source, to, who])
            times.append(
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            )
            memory.append(f"{peak / sizes[source]:.2f}")
        row = [SOURCES[source], to, f"{sizes[source] / 1e6:.0f}", *times, *memory]
        print(f"| {' | '.join(row)} |")
    size = sizes["backbone.safetensors"] / 1e6
    print(f"\nWriting {size:.0f} MB and fsync alone: {statistics.median(limits):.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
