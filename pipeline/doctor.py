"""``siambench doctor``: what this machine can do, each line well or with what to do."""

import importlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline.config import DoctorConfig
from pipeline.plan import size
from siambench.errors import EXIT_DONE, EXIT_USER, first_line
from siambench.files import existing

Health = Literal["ok", "note", "bad"]
_MARKS = {"ok": ("✓", "green"), "note": ("-", "yellow"), "bad": ("✗", "red")}
_TIGHT = 20e9  # bytes: an ImageNet feature cache in float32, twice


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        what: e.g. ``"faiss"``.
        health: ``note`` is something that some benchmarks do without; ``bad`` is not.
        text: what was found, or what is wrong and what to do.
    """

    what: str
    health: Health
    text: str


def doctor(config: DoctorConfig) -> int:
    """Look and print; 2 where something that every run needs does not work.

    Raises:
        UserError: ``data`` is no folder.
    """
    from rich.console import Console
    from rich.text import Text

    if config.data:
        existing(config.data, "--data: folder", folder=True)
    console = Console(soft_wrap=True)
    found = []
    for finding in findings(Path(config.data) if config.data else None):
        mark, style = _MARKS[finding.health]
        console.print(Text(f"{mark} {finding.what:<12} ", style=style) + Text(finding.text))
        found.append(finding)
    return EXIT_USER if any(f.health == "bad" for f in found) else EXIT_DONE


def findings(data: Path | None) -> Iterator[Finding]:
    """All there is to say, the slow parts last.

    Args:
        data: folder of data sets to look for, or None.
    """
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield _try("torch", _torch)
    yield _try("torchvision", _torchvision)
    yield _try("CUDA", _cuda)
    yield _try("faiss", _faiss)
    for name, package in (("pycocotools", "pycocotools.mask"), ("scikit-learn", "sklearn")):
        yield _try(name, lambda n=name, p=package: _imports(n, p))  # type: ignore[misc]
    yield _try("detectron2", _detectron2)
    yield _slurm()
    yield _disk()
    if data is None:
        yield Finding("data", "note", "say where: siambench doctor --data DIR")
    else:
        yield from _data(data)


def _try(what: str, look: Callable[[], Finding]) -> Finding:
    """``look()``, whatever a broken installation raises."""
    try:
        return look()
    except Exception as error:
        return Finding(
            what, "bad", f"{first_line(error)}; reinstall it: pip install {what.lower()}"
        )


def _imports(name: str, package: str) -> Finding:
    importlib.import_module(package)
    return Finding(name, "ok", version(name))


def _torch() -> Finding:
    import torch

    from siambench.device import cores

    x = torch.randn(8, 3, 16, 16, requires_grad=True)
    torch.nn.functional.conv2d(x, torch.randn(4, 3, 3, 3)).sum().backward()
    return Finding("torch", "ok", f"{torch.__version__}, {cores()} CPU cores")


def _torchvision() -> Finding:
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    if kept.tolist() != [0]:
        raise RuntimeError("its operators do not work; is it built for this torch?")
    return Finding("torchvision", "ok", torchvision.__version__)


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"this torch is built for CUDA {built}: no driver or no GPU (nvidia-smi)"
            if built
            else "this torch is built without CUDA"
        )
        return Finding("CUDA", "note", f"no GPU; everything runs on the CPU ({why})")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = [torch.cuda.mem_get_info(i)[0] for i in range(len(names))]
    torch.ones(8, device="cuda").sum().item()
    listed = ", ".join(f"{n} ({size(f)} free)" for n, f in zip(names, free, strict=True))
    nccl = "with NCCL" if torch.distributed.is_nccl_available() else "without NCCL: one GPU a job"
    return Finding("CUDA", "ok", f"{torch.version.cuda}: {listed}; {nccl}")


def _faiss() -> Finding:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype="float32"))
    if index.search(np.eye(4, dtype="float32"), 1)[1].ravel().tolist() != [0, 1, 2, 3]:
        raise RuntimeError("its search is wrong")
    return Finding("faiss", "ok", faiss.__version__)


def _detectron2() -> Finding:
    try:
        found = version("detectron2")
    except PackageNotFoundError:
        text = "not installed: `detect` takes its torchvision engine, which computes the same (docs/detection.md)"
        return Finding("detectron2", "note", text)
    importlib.import_module("detectron2._C")
    return Finding("detectron2", "ok", found)


def _slurm() -> Finding:
    if shutil.which("sbatch") and shutil.which("srun"):
        return Finding("Slurm", "ok", f"{shutil.which('sbatch')}")
    return Finding(
        "Slurm", "note", "no sbatch here: run files with `executor: slurm` start elsewhere"
    )


def _disk() -> Finding:
    usage = shutil.disk_usage(Path.cwd())
    text = f"{size(usage.free)} free of {size(usage.total)} here"
    if usage.free < _TIGHT:
        return Finding("disk", "note", f"{text}; features of ImageNet take 5 to 10 GB a backbone")
    return Finding("disk", "ok", text)


def _data(folder: Path) -> Iterator[Finding]:
    """The data sets in ``folder`` by their layouts, each with how to check it."""
    layouts = {
        "imagenet-1k": ("train", "val"),
        "voc07": ("VOC2007/Annotations", "VOC2007/JPEGImages", "VOC2007/ImageSets/Main"),
        "voc0712": ("VOC2007/Annotations", "VOC2012/Annotations"),
        "voc12aug": ("VOC2012/SegmentationClassAug",),
        "coco2017": ("annotations/instances_train2017.json", "train2017", "val2017"),
        "cityscapes": ("leftImg8bit/train", "gtFine/train"),
    }
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    some = False
    for name, parts in layouts.items():
        for place in places:
            if all((place / part).exists() for part in parts) and not (
                name == "imagenet-1k" and not any((place / "train").glob("*/"))
            ):
                some = True
                yield Finding(name, "ok", f"{place}; count it: siambench data check {name} {place}")
                break
    if not some:
        yield Finding(
            "data", "note", f"no known layout in {folder} or in its folders (README, Your data)"
        )
