"""A checkpoint becomes a backbone in memory: every expected weight of it, or a refusal."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from convert.layouts import LAYOUTS, Layout, layout_of
from convert.reading import Leaf, read_leaves
from convert.recognise import Found, closest, faults, find_resnets
from siambench.backbone import FORMAT, BackboneMeta, check_state, read_backbone
from siambench.errors import UserError
from siambench.files import existing, sha256_file
from siambench.resnet import build_resnet, expected_shapes


@dataclass(frozen=True)
class Report:
    """What was found in a source.

    Attributes:
        source: the file read, or ``random:ARCH``.
        layout: row of the layout table.
        prefix: of the backbone's keys, as the file has them.
        arch: architecture, inferred from shapes.
        matched: keys found of keys expected, ``"318/318"``.
        dropped: tensors of the file that are no part of the backbone, by group.
        digest: SHA-256 of the weights alone: equal in every format they are written in.
        notes: what else the user should know.
    """

    source: str
    layout: str
    prefix: str
    arch: str
    matched: str
    dropped: dict[str, int]
    digest: str
    notes: list[str]


Reading = tuple[dict[str, Tensor], BackboneMeta, Report]


def read_checkpoint(path: str | Path) -> Reading:
    """Read the backbone out of any known checkpoint, or out of a backbone file.

    Args:
        path: the file. Its content decides what it is, not its name.

    Returns:
        The state dict (torchvision names, float32 CPU tensors, no ``fc``), its metadata (``method``
        is ``""`` when neither file nor layout tells), and how it was found.

    Raises:
        UserError: damaged, foreign or hostile file, or not every expected weight is in it.
    """
    path = existing(path, "checkpoint", hint="name a checkpoint file, or random:ARCH")
    if _is_backbone_file(path):
        stored, meta = read_backbone(path)
        state = {name: stored[name] for name in expected_shapes(meta.arch)}
        report = Report(
            source=str(path),
            layout="siambench backbone",
            prefix="",
            arch=meta.arch,
            matched=meta.matched,
            dropped={},
            digest=weights_digest(state),
            notes=[],
        )
        return state, meta, report
    leaves = read_leaves(path)
    found, layout, container, others = _choose(leaves, path)
    state, notes = _take(found, leaves, path)
    notes += [f"also in the file and not used: {o.arch} at {_prefix(o, leaves)!r}" for o in others]
    said = _value(leaves, "arch")
    if isinstance(said, str) and said != found.arch:
        notes.append(f"the file calls itself {said}; its tensors are a {found.arch}")
    method = _value(leaves, "method") if layout.also == "method" else layout.method
    epochs = _value(leaves, layout.epochs)
    meta = BackboneMeta(
        arch=found.arch,
        method=method if isinstance(method, str) else "",
        epochs=epochs if type(epochs) is int and epochs >= 0 else None,
        source=path.name,
        source_sha256=sha256_file(path),
        matched=f"{len(found.keys)}/{len(found.keys)}",
    )
    report = Report(
        source=str(path),
        layout=layout.name,
        prefix=_prefix(found, leaves),
        arch=found.arch,
        matched=meta.matched,
        dropped=_dropped(found, container, leaves),
        digest=weights_digest(state),
        notes=notes,
    )
    return state, meta, report


def random_backbone(arch: str, seed: int) -> Reading:
    """torchvision's default initialisation (not the zero-residual one), from ``seed``.

    Raises:
        UserError: unknown architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_resnet(arch).state_dict()
    source, matched = f"random:{arch} seed {seed}", f"{len(state)}/{len(state)}"
    meta = BackboneMeta(arch, method="random init", epochs=0, source=source, matched=matched)
    report = Report(
        source=source,
        layout="random initialisation",
        prefix="",
        arch=arch,
        matched=matched,
        dropped={},
        digest=weights_digest(state),
        notes=[],
    )
    return state, meta, report


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _is_backbone_file(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as handle:
            return (handle.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _choose(leaves: dict[str, Leaf], path: Path) -> tuple[Found, Layout, str, list[Found]]:
    """The ResNet that the layout table puts first, its row and container, and the other whole ones."""
    found = find_resnets(leaves)
    if not found:
        tensors = [leaf.key for leaf in leaves.values() if isinstance(leaf.value, Tensor)]
        shown = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "") or "none"
        raise UserError(
            f"{path}: no ResNet in it; its {len(tensors)} tensors: {shown}; the known layouts are in "
            "docs/convert.md; nothing was written"
        )
    ranked = [(*layout_of(f, leaves), f) for f in found]
    ranked.sort(key=lambda row: (row[0], not row[3].whole))
    place, layout, container, chosen = ranked[0]
    if not chosen.whole:  # a whole one further down is another network: not what is meant
        near = chosen if layout in LAYOUTS else closest(found)
        raise UserError(
            f"{path}: closest layout: {layout.name}, {near.arch} at {_prefix(near, leaves)!r}, but "
            f"{faults(near)}; nothing was written"
        )
    whole = [row for row in ranked if row[3].whole]
    if len(whole) > 1 and whole[1][0] == place:
        raise UserError(
            f"{path} holds several ResNets and no known layout says which is meant: "
            f"{', '.join(repr(_prefix(f, leaves)) for p, _, _, f in whole if p == place)}"
        )
    return chosen, layout, container, [f for *_, f in whole[1:]]


def _take(found: Found, leaves: dict[str, Leaf], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The found weights under torchvision's names in its order, float32, each in its own memory."""
    state: dict[str, Tensor] = {}
    cast, places = Counter[str](), set[int]()
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
            or (not counter and not tensor.is_floating_point())
        ):
            raise UserError(
                f"{path}: {leaf.key} is {tensor.dtype}, {tensor.layout}, not plain weights"
            )
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {leaf.key} claims more numbers than the file holds")
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
        raise UserError(f"{path}: {'; '.join(problems[:4])}{more}; nothing was written")
    notes = [f"{count} tensors were {kind}" for kind, count in cast.items()]
    if not found.counters:
        notes.append("num_batches_tracked is not in the file: set to 0, which changes no feature")
    return state, notes


def _value(leaves: dict[str, Leaf], key: str) -> Any:
    return leaves[key].value if key in leaves else None


def _prefix(found: Found, leaves: dict[str, Leaf]) -> str:
    """The prefix as the file has it, ``module.`` and all."""
    for short in found.keys.values():
        full, rest = leaves[short].key, short.removeprefix(found.prefix)
        if full.endswith(rest):
            return full.removesuffix(rest)
    return found.prefix


def _dropped(found: Found, container: str, leaves: dict[str, Leaf]) -> dict[str, int]:
    """Tensors that were left, counted by the first part of their names."""
    used, groups = set(found.keys.values()), Counter[str]()
    for key, leaf in leaves.items():
        if isinstance(leaf.value, Tensor) and key not in used:
            start = found.prefix if key.startswith(found.prefix) else ""
            start = start or (container if key.startswith(container) else "")
            groups[start.removeprefix(container) + key.removeprefix(start).split(".")[0]] += 1
    return dict(sorted(groups.items()))
