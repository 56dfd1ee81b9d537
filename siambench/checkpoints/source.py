"""The way in: a path, a hub name, a state dict or a module becomes a backbone, whole or not at all."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from siambench.backbone import (
    FORMAT,
    Backbone,
    BackboneMeta,
    check_state,
    read_backbone,
    weights_digest,
)
from siambench.checkpoints import hubs, names
from siambench.checkpoints.layouts import CAFFE, LAYOUTS, dropped_groups
from siambench.checkpoints.leaves import Leaf, flatten, read_leaves
from siambench.checkpoints.pick import Choice, pick
from siambench.checkpoints.same import check_module
from siambench.checkpoints.sanity import Sanity, folded, inspect
from siambench.errors import UserError, printable
from siambench.files import existing, sha256_file
from siambench.progress import say
from siambench.resnet import build_resnet, expected_shapes

Source = str | Path | Mapping[str, Any] | nn.Module
_RANDOM, _OURS = "random initialisation", "siambench backbone"
_ENDINGS = (".safetensors", ".pth", ".pt", ".tar", ".pkl", ".ckpt", ".bin", ".torch")


@dataclass(frozen=True)
class Report:
    """What was found in a source.

    Attributes:
        source: the file read, or a name such as ``random:ARCH``.
        layout: row of the layout table.
        branch: which of two encoders was taken, where the layout has two: ``"query"``, ...
        prefix: of the backbone's keys, as the file has them.
        arch: architecture, inferred from shapes.
        matched: keys found of keys expected, ``"318/318"``.
        dropped: tensors of the file that are no part of the backbone, by group.
        mean, std: per-channel RGB statistics that the input is expected to be normalised with.
        sanity: numbers that betray a broken or untrained file.
        digest: SHA-256 of the weights alone: equal in every format they are written in.
        notes: what else the user should know.
    """

    source: str
    layout: str
    arch: str
    matched: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sanity: Sanity
    digest: str
    branch: str = ""
    prefix: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Reading = tuple[dict[str, Tensor], BackboneMeta, Report]


def load_backbone(source: Source, *, branch: str = "") -> Backbone:
    """A frozen backbone on the CPU, from whatever holds one.

    Args:
        source: as :func:`read_checkpoint`: a backbone file, any known checkpoint, ``timm:NAME``,
            ``torchvision:NAME``, ``hf-hub:REPO``, ``random:ARCH``, a state dict or a module.
        branch: which encoder, where the source holds several.

    Returns:
        A module in evaluation mode without gradients: ``features(images)`` maps normalised images
        (N, 3, H, W) to (N, dim), ``stages(images)`` to feature1 ... feature5; ``meta.mean`` and
        ``meta.std`` are what to normalise with.

    Example:
        >>> backbone = load_backbone("random:resnet50")
        >>> backbone.features(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 2048])

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    state, meta, report = read_checkpoint(source, branch=branch)
    if report.layout == _OURS and Path(report.source).is_file():
        return Backbone(state, meta, Path(report.source).stem, sha256_file(report.source))
    of_branch = f", {report.branch} branch" if report.branch else ""
    say(
        f"{report.source}: {report.layout}{of_branch}, {report.arch}, {report.matched} keys matched"
    )
    for note in report.notes:
        say(f"{report.source}: {note}")
    meta = replace(meta, method=meta.method or "unknown")
    return Backbone(state, meta, _name(report.source), report.digest)


def read_checkpoint(source: Source, *, branch: str = "", seed: int = 0) -> Reading:
    """Read the backbone out of anything that holds one.

    Args:
        source: a file (its content decides what it is, not its name), ``timm:NAME``,
            ``torchvision:NAME`` or ``hf-hub:REPO`` (through those libraries), ``random:ARCH``
            (torchvision's default initialisation), or in memory: a state dict, whatever a trainer
            would save, or a module.
        branch: which encoder, where there are several: ``"query"``, ``"key"``, ``"teacher"``, ...,
            or its prefix; ``""`` for the published convention.
        seed: of ``random:ARCH``.

    Returns:
        The state dict (torchvision names, float32 CPU tensors, no ``fc``; from memory it may share
        that memory), its metadata (``method`` is ``""`` when neither file nor layout tells), and how
        it was found.

    Raises:
        UserError: damaged, foreign or hostile file, or not every expected weight is in it.
    """
    if isinstance(source, nn.Module):
        reading = _take(flatten("the module", source.state_dict()), "the module", branch)
        check_module(source, *reading[:2], reading[2].prefix)
        return reading
    if isinstance(source, Mapping):
        return _take(flatten("the state dict", source), "the state dict", branch)
    if not isinstance(source, str | Path):
        raise UserError(
            f"a {type(source).__name__} is no source of a backbone; give a path, a name such as "
            "timm:resnet50, a state dict or a module"
        )
    scheme, _, name = str(source).partition(":")
    if scheme == "random":
        _no_branch(str(source), branch)
        return _random(name, seed)
    if scheme in ("http", "https"):
        raise UserError(f"{source}: download it first, then name the file")
    if scheme in hubs.SCHEMES:
        return _fetched(hubs.fetch(str(source)), branch)
    path = existing(
        source,
        "checkpoint",
        hint="name a file, timm:NAME, torchvision:NAME, hf-hub:REPO or random:ARCH",
    )
    if is_backbone_file(path):
        _no_branch(str(path), branch)
        stored, meta = read_backbone(path)
        state = {name: stored[name] for name in expected_shapes(meta.arch)}
        return state, meta, _report(str(path), _OURS, state, meta)
    state, meta, report = _take(read_leaves(path), str(path), branch)
    meta = replace(meta, source=path.name, source_sha256=sha256_file(path))
    return state, meta, report


def _no_branch(source: str, branch: str) -> None:
    if branch:
        raise UserError(f"{source} holds one backbone: there is no branch {branch!r} to choose")


def is_backbone_file(path: Path) -> bool:
    """Whether ``path`` is a file of our own format, whole or not."""
    try:
        with safe_open(path, framework="pt") as handle:
            return (handle.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _fetched(fetched: hubs.Fetched, branch: str) -> Reading:
    """The backbone in a hub's file, with what the hub says of it."""
    try:
        state, meta, report = read_checkpoint(fetched.file, branch=branch)
    except UserError as error:
        raise UserError(f"{fetched.uri}: {error}") from None
    meta = replace(
        meta,
        method=fetched.method or meta.method,
        mean=fetched.mean or meta.mean,
        std=fetched.std or meta.std,
        source=fetched.uri,
    )
    notes = [*report.notes, *fetched.notes]
    report = replace(report, source=fetched.uri, mean=meta.mean, std=meta.std, notes=notes)
    return state, meta, report


def _random(arch: str, seed: int) -> Reading:
    """torchvision's default initialisation (not the zero-residual one), from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_resnet(arch).state_dict()
    source, matched = f"random:{arch} seed {seed}", f"{len(state)}/{len(state)}"
    meta = BackboneMeta(arch, method="random init", epochs=0, source=source, matched=matched)
    return state, meta, _report(source, _RANDOM, state, meta)


def _report(source: str, layout: str, state: Mapping[str, Tensor], meta: BackboneMeta) -> Report:
    """The report of a source with nothing but the backbone in it."""
    sanity = inspect(state)
    return Report(
        source=source,
        layout=layout,
        arch=meta.arch,
        matched=meta.matched,
        mean=meta.mean,
        std=meta.std,
        sanity=sanity,
        digest=weights_digest(state),
        notes=[] if layout == _RANDOM else sanity.warnings(),
    )


def _take(leaves: dict[str, Leaf], source: str, branch: str) -> Reading:
    """The backbone among a checkpoint's values."""
    chosen = pick(leaves, source, branch)
    state, notes = _weights(chosen, leaves, source)
    notes += chosen.notes(leaves)
    layout, arch = chosen.layout, chosen.found.arch
    if not chosen.found.counters and folded(state):
        raise UserError(
            f"{source}: every batch norm has mean 0 and variance 1, yet a scale: its statistics are folded "
            f"in, as in Caffe's weights under other names. {CAFFE}; nothing was written"
        )
    said, method, epochs = (
        leaves[key].value if key in leaves else None for key in ("arch", layout.says, layout.epochs)
    )
    if isinstance(said, str) and said != arch:
        notes.append(f"the file calls itself {printable(said)}; its tensors are a {arch}")
    if (not layout.prefix and layout.spelling is names.torchvision) or layout not in LAYOUTS:
        notes.append(
            "nothing in the file tells which network its names belong to: torchvision's strides, "
            "pooling and epsilon, RGB and ImageNet's mean and std are assumed"
        )
    counted = type(epochs) is int and epochs >= 0 and "pytorch-lightning_version" not in leaves
    meta = BackboneMeta(
        arch=arch,
        method=printable(method) if isinstance(method, str) else layout.method,
        epochs=epochs if counted else None,  # Lightning's is a number from 0, or past the last
        source=source,
        matched=f"{len(chosen.found.keys)}/{len(chosen.found.keys)}",
    )
    report = replace(
        _report(source, layout.name, state, meta),
        branch=layout.branch,
        prefix=chosen.prefix(leaves),
        dropped=dropped_groups(leaves, chosen.found, layout, chosen.container),
    )
    return state, meta, replace(report, notes=notes + report.notes)


def _weights(
    chosen: Choice, leaves: dict[str, Leaf], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The found weights under torchvision's names in its order, float32, each in its own memory."""
    state: dict[str, Tensor] = {}
    cast, places, found = Counter[str](), set[int](), chosen.found
    for name, shape in expected_shapes(found.arch).items():
        counter = name.endswith("num_batches_tracked")
        if counter and not found.counters:
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        leaf = leaves[found.keys[name]]
        tensor, kind = leaf.value.detach(), torch.int64 if counter else torch.float32
        if (
            tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_complex()
            or tensor.is_meta
            or (not counter and not tensor.is_floating_point())
        ):
            raise UserError(
                f"{source}: {leaf.key} is {tensor.dtype}, {tensor.layout}, not plain weights"
            )
        tensor = tensor.cpu()
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise UserError(f"{source}: {leaf.key} claims more numbers than the file holds")
        if tensor.dtype is not kind:
            cast[str(tensor.dtype)] += 1
            tensor = tensor.to(kind)
        elif tensor.untyped_storage().nbytes() != size or tensor.data_ptr() in places:
            tensor = tensor.clone()
        places.add(tensor.data_ptr())
        state[name] = tensor.contiguous()
    problems = check_state(found.arch, state)
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{source}: {'; '.join(problems[:4])}{more}; nothing was written")
    notes = [f"{count} tensors were {kind} and are cast" for kind, count in cast.items()]
    if not found.counters:
        notes.append("num_batches_tracked is not in the file: set to 0, which changes no feature")
    return state, notes


def _name(source: str) -> str:
    """A row's name for what was read: of a file without its endings, of a hub without separators."""
    path = Path(source)
    if ":" not in source or path.exists():
        while path.suffix in _ENDINGS:
            path = path.with_suffix("")
        source = path.name
    source = re.sub(r"@([0-9a-f]{8})[0-9a-f]{32}\b", r"@\1", source)  # a commit
    return re.sub(r"[:/@ ]+", "-", source)
