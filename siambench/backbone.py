"""The backbone file (``NAME.safetensors``) and the frozen backbone that evaluations share.

The format is written down in docs/formats.md. A file is read whole and checked whole: every tensor
that the architecture needs is there with its shape, finite, no variance negative, and nothing else is.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from siambench import __version__
from siambench.errors import UserError
from siambench.files import atomic_path, existing
from siambench.resnet import build_resnet, expected_shapes, feature_dim

FORMAT = "siambench-backbone"
FORMAT_VERSION = "1"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneMeta:
    """What a backbone file says of itself.

    Attributes:
        arch: architecture name, as :func:`siambench.resnet.build_resnet` takes it.
        method: pre-training method as a table would print it, e.g. ``"SimSiam"``.
        epochs: pre-training epochs; None when the source does not say.
        mean, std: per-channel RGB statistics of the input in [0, 1].
        source: name of the file the weights came from.
        source_sha256: its SHA-256, or ``""`` when there was no file (random initialisation).
        matched: how many expected keys the source filled, ``"318/318"``.
        weights_sha256: :func:`weights_digest` of the tensors; ``""`` in files of before it was kept.
        version: version of siambench that wrote the file.
    """

    arch: str
    method: str
    epochs: int | None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = ""
    source_sha256: str = ""
    matched: str = ""
    weights_sha256: str = ""
    version: str = __version__

    def to_strings(self) -> dict[str, str]:
        """The metadata as safetensors stores it: strings only."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "arch": self.arch,
            "method": self.method,
            "epochs": "" if self.epochs is None else str(self.epochs),
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
            "source": self.source,
            "source_sha256": self.source_sha256,
            "matched": self.matched,
            "weights_sha256": self.weights_sha256,
            "version": self.version,
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> "BackboneMeta":
        """Read what :meth:`to_strings` wrote.

        Raises:
            KeyError, ValueError, TypeError: a field is missing or is not what it should be.
        """
        mean, std = (tuple(float(x) for x in json.loads(strings[k])) for k in ("mean", "std"))
        finite = all(map(math.isfinite, mean + std))
        if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
            raise ValueError("mean and std must be three numbers each, std positive")
        return cls(
            arch=strings["arch"],
            method=strings["method"],
            epochs=int(strings["epochs"]) if strings["epochs"] else None,
            mean=mean,
            std=std,
            source=strings["source"],
            source_sha256=strings["source_sha256"],
            matched=strings["matched"],
            weights_sha256=strings.get("weights_sha256", ""),
            version=strings["version"],
        )


def check_state(arch: str, state: Mapping[str, Tensor]) -> list[str]:
    """Every way in which ``state`` is not a whole ``arch`` without ``fc``; empty when it is one."""
    expected = expected_shapes(arch)
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    for name, shape in expected.items():
        if name in state and tuple(state[name].shape) != shape:
            problems.append(f"{name} has shape {tuple(state[name].shape)}, not {shape}")
        elif name in state and not finite(state[name]):
            problems.append(f"{name} holds NaN or infinity")
        elif name in state and name.endswith("running_var") and state[name].min() < 0:
            problems.append(f"{name} holds a negative variance")
    return problems


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. Integers are finite."""
    # A finite sum proves every term finite and takes a twentieth of the time; large ones may overflow.
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def save_backbone(path: str | Path, state: Mapping[str, Tensor], meta: BackboneMeta) -> None:
    """Write a backbone file atomically.

    Args:
        path: the file, ending in ``.safetensors``.
        state: torchvision names to tensors, without ``fc``.
        meta: what the file says of itself; ``matched`` is filled in when empty, ``weights_sha256``
            always.

    Raises:
        UserError: the tensors are not a whole ``meta.arch``; nothing is written.
    """
    problems = check_state(meta.arch, state)
    if problems:
        raise UserError(f"{path}: not a whole {meta.arch}: {_first(problems)}; nothing was written")
    strings = meta.to_strings()
    strings["matched"] = meta.matched or f"{len(state)}/{len(state)}"
    strings["weights_sha256"] = weights_digest(state)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=strings)
        sort_header(temporary)


def sort_header(path: Path) -> None:
    """Sort the metadata in a safetensors header, in place: the library's order is random.

    The same weights then give the same bytes, and so the same SHA-256 in records.
    """
    with open(path, "rb+") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "a sorted header is as long as an unsorted one"
        handle.seek(8)
        handle.write(text.ljust(length))


def read_backbone(path: str | Path) -> tuple[dict[str, Tensor], BackboneMeta]:
    """Read and validate a backbone file.

    Returns:
        The state dict (torchvision names, CPU tensors) and its metadata.

    Raises:
        UserError: the file is absent, damaged, not a backbone file, or not whole.
    """
    path = Path(path)
    with _opened(path) as (handle, meta):
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    try:
        problems = check_state(meta.arch, state)
    except UserError as error:  # an architecture that nobody knows
        raise UserError(f"{path}: backbone metadata is damaged ({error})") from None
    if problems:
        raise UserError(f"{path}: not a whole {meta.arch}: {_first(problems)}")
    if meta.weights_sha256 not in ("", weights_digest(state)):
        raise UserError(
            f"{path} is damaged: its weights are not those it was written with; copy or convert it again"
        )
    return state, meta


def read_meta(path: str | Path) -> BackboneMeta:
    """What a backbone file says of itself, without its weights.

    Raises:
        UserError: as :func:`read_backbone`, but for the weights.
    """
    with _opened(Path(path)) as (_, meta):
        return meta


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, BackboneMeta]]:
    """A backbone file, open, and what it says of itself.

    Raises:
        UserError: the file is absent, damaged or not a backbone file.
    """
    existing(path, "backbone file", hint="make one with `siambench convert`")
    try:
        with safe_open(path, framework="pt") as handle:
            strings = handle.metadata() or {}
            if strings.get("format") != FORMAT:
                raise UserError(
                    f"{path} is a safetensors file but not a siambench backbone; convert it with "
                    f"`siambench convert {path} --out NAME.safetensors`"
                )
            if strings.get("format_version") != FORMAT_VERSION:
                raise UserError(
                    f"{path} has backbone format version {strings.get('format_version')!r}; this "
                    f"siambench ({__version__}) reads version {FORMAT_VERSION}"
                )
            yield handle, BackboneMeta.from_strings(strings)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole backbone file ({error}); if it is a checkpoint, convert it with "
            "`siambench convert`; if it was copied, copy it again"
        ) from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: backbone metadata is damaged ({error})") from None


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name: the same in every format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


class Backbone(nn.Module):
    """A frozen ResNet: no gradient, always in evaluation mode, whatever ``train()`` is called.

    Attributes:
        meta: the file's metadata (architecture, method, mean, std, ...).
        name: the row a report prints; of a file, its name without endings.
        sha256: what a record is tied to: of the file, or of the weights where there was none.
        dim: channels of the pooled feature.
    """

    def __init__(
        self, state: Mapping[str, Tensor], meta: BackboneMeta, name: str, sha256: str
    ) -> None:
        super().__init__()
        self.meta = meta
        self.name = name
        self.sha256 = sha256
        self.dim = feature_dim(meta.arch)
        self.resnet = build_resnet(meta.arch)
        self.resnet.load_state_dict(dict(state))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen backbone's batch norms must not move."""
        return super().train(False)

    def stages(self, images: Tensor) -> list[Tensor]:
        """feature1 to feature5 of normalised ``images`` (N, 3, H, W).

        feature1 is the stem after its ReLU and before the max-pool (N, 64, H/2, W/2; 64 × the factor
        in a widened network), as the feature1 of VISSL and mmselfsup (its 10×10 pooling to 9,216
        numbers needs the 112×112 map); feature2 to feature5 are layer1 (stride 4) to layer4 (stride
        32).
        """
        net = self.resnet
        x = net.relu(net.bn1(net.conv1(images)))
        maps = [x]
        x = net.maxpool(x)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Globally average-pooled layer4 of normalised ``images``: (N, 3, H, W) to (N, dim)."""
        return self.stages(images)[-1].mean(dim=(2, 3))

    forward = features


def _first(problems: list[str], most: int = 5) -> str:
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
