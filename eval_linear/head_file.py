"""Reading ``head.safetensors``, which may be a stranger's: whole and sane, or one clear line."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from eval_linear.probe import HEAD_FORMAT, HEAD_VERSION
from siambench.backbone import finite
from siambench.errors import UserError
from siambench.files import existing
from siambench.pooling import LAYERS

_LARGEST = 4096  # pixels; a larger crop would fill the memory before anything could be said


@dataclass(frozen=True)
class Head:
    """One layer of a head file.

    Attributes:
        layer: what the classifier looks at.
        weight: float32 (C, D).
        bias: float32 (C,).
        classes: names of the C classes.
        resize, crop: of the test images, in pixels.
        mean, std: what they were normalised with; empty in files of before it was kept.
        about: all metadata as stored.
    """

    layer: str
    weight: Tensor
    bias: Tensor
    classes: list[str]
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: Mapping[str, str]


def read_head(path: str | Path, layer: str = "") -> Head:
    """Read and check one layer of a ``head.safetensors``.

    Args:
        path: the file.
        layer: which layer; by default avgpool if it is there, else the last.

    Raises:
        UserError: absent, damaged or no head, or it has no such layer.
    """
    path = existing(path, "head", hint="`siambench linear` leaves head.safetensors in OUT/jobs")
    try:
        with safe_open(path, framework="pt") as handle:
            about, names = handle.metadata() or {}, set(handle.keys())
            layers = [name for name in LAYERS if f"{name}.weight" in names]
            if about.get("format", HEAD_FORMAT) != HEAD_FORMAT or not layers:
                raise UserError(f"{path} is not a head that `siambench linear` saved")
            if (version := about.get("format_version", HEAD_VERSION)) != HEAD_VERSION:
                raise UserError(
                    f"{path} has head format version {version!r}; this siambench reads version "
                    f"{HEAD_VERSION}"
                )
            if names != {f"{name}.{part}" for name in layers for part in ("weight", "bias")}:
                raise ValueError("not one weight and one bias per layer")
            layer = layer or layers[-1]  # avgpool is the last of LAYERS
            if layer not in layers:
                raise UserError(f"{path} has no layer {layer!r}; it has {', '.join(layers)}")
            parts = [f"{layer}.{part}" for part in ("weight", "bias")]
            if any(handle.get_slice(part).get_dtype() != "F32" for part in parts):
                raise ValueError("weight and bias are not float32")
            weight, bias = map(handle.get_tensor, parts)
            mean, std = (tuple(map(float, json.loads(about.get(k, "[]")))) for k in ("mean", "std"))
            head = Head(
                layer=layer,
                weight=weight,
                bias=bias,
                classes=json.loads(about["classes"]),
                resize=int(about["resize"]),
                crop=int(about["crop"]),
                mean=mean,
                std=std,
                about=about,
            )
    except KeyError as error:
        raise UserError(
            f"{path}: its metadata has no {error.args[0]}, without which no image can be classified; "
            "train it again"
        ) from None
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} is not a whole head file ({error}); copy it again") from None
    for problem, is_so in _problems(head).items():
        if is_so:
            raise UserError(f"{path} is damaged: {problem}; copy it again or train it again")
    return head


def _problems(head: Head) -> dict[str, bool]:
    """What could be wrong with a head's numbers and names, and whether it is."""
    weight, bias, names, count = head.weight, head.bias, head.classes, head.bias.numel()
    statistics = head.mean + head.std
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return {
        "weight and bias do not fit together": weight.ndim != 2
        or bias.shape != weight.shape[:1]
        or not weight.numel(),
        "a weight is NaN or infinite": not finite(weight) or not finite(bias),
        f"its class names are not {count} names": not listed or len(names) != count,
        f"resize {head.resize} and crop {head.crop} are not sizes of images": not 1
        <= head.crop
        <= head.resize
        <= _LARGEST,
        "mean and std are not three numbers each, std positive": (len(head.mean), len(head.std))
        not in {(3, 3), (0, 0)}
        or not all(map(math.isfinite, statistics))
        or min(head.std, default=1.0) <= 0,
    }
