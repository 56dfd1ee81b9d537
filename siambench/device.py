"""Where work runs, and what it ran on: device, seeds, threads, memory, versions."""

import os
import platform
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siambench import __version__
from siambench.errors import UserError


def pick_device(name: str) -> torch.device:
    """``"auto"`` (the GPU when there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` as a device.

    Raises:
        UserError: the device is not there or not a device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return device


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import random

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below us still draw from it
    torch.manual_seed(seed)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(workers: int, device: torch.device, processes: int = 1) -> int:
    """Split the cores between loader processes and torch's threads; return the loader processes.

    On a CPU every core has one owner: a quarter of the cores load unless ``workers`` says how many,
    and torch computes on the rest: with more compute threads than free cores, those that wait for
    each other at the end of every operation lose their cores, and a step takes many times longer. An
    OMP_NUM_THREADS in the environment is left as it is. For a GPU: one process per core, up to 16.

    Args:
        workers: processes that the user asked for; below 0 for none in particular.
        device: where torch computes.
        processes: of the job on this machine, which get an equal share each.
    """
    available = max(1, cores() // processes)
    if device.type != "cpu":
        return workers if workers >= 0 else min(available, 16)
    if workers < 0:
        workers = 0 if available == 1 else max(1, available // 4)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available - workers))
    return workers


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement for :func:`peak_memory_bytes` (where the system allows it)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux only: proc(5), /proc/pid/clear_refs
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since :func:`reset_peak_memory`: on the GPU if ``device`` is one, else resident.

    Where the peak cannot be reset, it is that of the whole process so far.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def software_versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    found = {"siambench": __version__, "python": platform.python_version()}
    names = ("torch", "torchvision", "numpy", "scikit-learn", "faiss-cpu", "pycocotools")
    for name in (*names, "detectron2", "fvcore"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine in a few words."""
    found: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
