"""Where in a checkpoint the ResNet is, and which one: from names and shapes alone."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torchvision.models.resnet import Bottleneck

from siambench.checkpoints import names
from siambench.checkpoints.leaves import Leaf
from siambench.checkpoints.names import Spelling
from siambench.resnet import ARCHS, expected_shapes

_MARKS: dict[Spelling, re.Pattern[str]] = {
    names.torchvision: re.compile(r"((?:.*\.)?)layer[1-4]\.\d+\.conv\d\.weight"),
    names.numbered: re.compile(r"((?:.*\.)?)[4-7]\.\d+\.conv\d\.weight"),
    names.detectron2: re.compile(r"((?:.*\.)?)res[2-5]\.\d+\.conv\d\.weight"),
    names.transformers: re.compile(
        r"((?:.*\.)?)encoder\.stages\.\d\.layers\.\d+\.layer\.\d\.convolution\.weight"
    ),
}
_MOST_CANDIDATES = 32
_MOST_PLANES = 1024  # in layer1: 16 times as wide as any published ResNet


@dataclass(frozen=True)
class Found:
    """A ResNet in a checkpoint, whole or not.

    Attributes:
        prefix: what stands before every one of its names, e.g. ``"state_dict.encoder."``.
        spelling: whose names they are.
        arch: the closest architecture.
        keys: torchvision's name to the checkpoint's key, for every weight of the architecture.
        missing: torchvision's names that are not there.
        wrong: other reasons why it is not whole: names too many, shapes that differ.
        counters: whether ``num_batches_tracked`` is kept, which old files leave out.
    """

    prefix: str
    spelling: Spelling
    arch: str
    keys: dict[str, str]
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    counters: bool = True

    @property
    def whole(self) -> bool:
        """Whether every expected weight is there and nothing else is."""
        return not (self.missing or self.wrong)


def find_resnets(leaves: Mapping[str, Leaf]) -> list[Found]:
    """Every ResNet in a checkpoint, in the order in which the file has them."""
    tensors = {key: leaf.value for key, leaf in leaves.items() if isinstance(leaf.value, Tensor)}
    places = Counter(
        (match[1], spelling)
        for key in tensors
        for spelling, mark in _MARKS.items()
        if (match := mark.fullmatch(key))
    )
    found = []
    for prefix, spelling in [place for place, _ in places.most_common(_MOST_CANDIDATES)]:
        keys = {}
        for key in tensors:
            if key.startswith(prefix) and (name := spelling(key.removeprefix(prefix))):
                keys[name] = key
        shapes = {name: tuple(tensors[key].shape) for name, key in keys.items()}
        found.append(_fit(prefix, spelling, keys, shapes))
    return found


def _fit(
    prefix: str, spelling: Spelling, keys: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> Found:
    counters = any(name.endswith("num_batches_tracked") for name in keys)
    best: tuple[int, str, list[str], list[str]] | None = None
    for arch in _candidates(shapes):
        expected = expected_shapes(arch)
        missing = [
            name
            for name in expected
            if name not in shapes and (counters or not name.endswith("num_batches_tracked"))
        ]
        extra = [name for name in shapes if name not in expected]
        if best is None or len(missing) + len(extra) < best[0]:
            best = len(missing) + len(extra), arch, missing, extra
    assert best is not None
    _, arch, missing, extra = best
    wrong = [f"{name} is no part of {arch}" for name in extra]
    wrong += [
        f"{name} has shape {shapes[name]}, not {shape}"
        for name, shape in expected_shapes(arch).items()
        if name in shapes and shapes[name] != shape
    ]
    return Found(prefix, spelling, arch, keys, missing, wrong, counters)


def _candidates(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Architectures of its block and, where one fits, its depth, stem, width and planes."""
    bottleneck = any(".conv3." in name for name in shapes)
    archs = {n: a for n, a in ARCHS.items() if (a.block is Bottleneck) == bottleneck}
    blocks = {tuple(n.split(".")[:2]) for n in shapes if n.startswith("layer")}
    depth = tuple(sum(layer == f"layer{i}" for layer, _ in blocks) for i in (1, 2, 3, 4))
    archs = {n: a for n, a in archs.items() if a.layers == depth} or archs
    stems = (shapes[name][:1] for name in ("conv1.weight", "bn1.weight") if name in shapes)
    stem = next(stems, (64,))
    archs = {n: a for n, a in archs.items() if (a.stem,) == stem} or archs
    for name, shape in shapes.items():
        match = re.fullmatch(r"layer([1-4])\.\d+\.conv([23])\.weight", name)
        if not match or match[2] != ("3" if bottleneck else "2") or len(shape) != 4:
            continue
        scale = 2 ** (int(match[1]) - 1)
        planes = shape[0] // scale // (4 if bottleneck else 1)
        if bottleneck and planes:
            per_group = shape[1] * 64 // (planes * scale)
            archs = {n: a for n, a in archs.items() if a.width_per_group == per_group} or archs
        if 8 <= planes <= _MOST_PLANES and planes % 8 == 0:
            return [n if planes == a.stem else f"{n}-w{planes}" for n, a in archs.items()]
        break
    return list(archs)


def closest(found: list[Found]) -> Found:
    """The one that lacks least."""
    return max(found, key=lambda f: len(f.keys) - len(f.missing) - len(f.wrong))


def faults(found: Found) -> str:
    """Why it is not whole: the first few names and how many there are."""
    parts = []
    if found.missing:
        parts.append(f"{len(found.missing)} expected keys missing: {_first(found.missing)}")
    if found.wrong:
        parts.append(_first(found.wrong, separator="; "))
    return "; ".join(parts)


def _first(items: list[str], most: int = 4, separator: str = ", ") -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
