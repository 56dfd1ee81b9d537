"""Weights by name through the libraries that publish them: ``timm:``, ``torchvision:``, ``hf-hub:``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from siambench.errors import UserError

SCHEMES = ("timm", "torchvision", "hf-hub")
Three = tuple[float, float, float]


@dataclass(frozen=True)
class Fetched:
    """What a hub gave.

    Attributes:
        uri: as given, made exact where the hub resolved it, e.g. ``torchvision:resnet50.IMAGENET1K_V1``.
        weights: a state dict, or a file to read like any other checkpoint.
        method: pre-training method as a table prints it; ``""`` when the hub does not tell.
        mean, std: the input's RGB statistics in [0, 1]; None when the hub does not tell.
        notes: what else the user should know.
    """

    uri: str
    weights: Mapping[str, Tensor] | Path
    method: str = ""
    mean: Three | None = None
    std: Three | None = None
    notes: tuple[str, ...] = ()


def fetch(uri: str) -> Fetched:
    """Fetch weights by name.

    Raises:
        UserError: the library is missing, knows no such name, or cannot be reached.
    """
    raise UserError(f"{uri}: not implemented")
