"""What is written for other libraries: they load it, and every round trip is exact to the bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor

from convert.config import ConvertConfig
from convert.run import Conversion, run
from convert.targets import TARGETS
from siambench.backbone import BackboneMeta, read_backbone, save_backbone
from siambench.checkpoints.names import to_detectron2
from siambench.checkpoints.source import is_backbone_file, read_checkpoint, weights_digest
from siambench.errors import UserError
from siambench.resnet import build_resnet

KINDS = [(to, ending) for to, row in TARGETS.items() for ending in row.endings]


def awkward_state() -> dict[str, Tensor]:
    """Weights whose bits a conversion by way of numbers would lose."""
    state = checkpoints.make_resnet().state_dict()
    state["conv1.weight"].view(-1)[:3] = torch.tensor([-0.0, 1e-42, 3.4e38])
    state["bn1.num_batches_tracked"].fill_(2**40 + 1)
    return state


def same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Names, types, shapes and bytes."""
    return set(ours) == set(theirs) and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and ours[name].numpy().tobytes() == theirs[name].numpy().tobytes()
        for name in ours
    )


def convert(source: Path, out: Path, to: str) -> Conversion:
    return run(ConvertConfig(source=str(source), out=str(out), to=to))


@pytest.mark.parametrize(("first", "ending"), KINDS)
def test_round_trips_through_files_are_bit_exact(first: str, ending: str, tmp_path: Path) -> None:
    """From every target to every target; a file's bytes do not tell by which way it came."""
    state = awkward_state()
    start = checkpoints.save(state, tmp_path, "start")
    middle = tmp_path / f"middle{ending}"
    digest = convert(start, middle, first).report.digest
    assert digest == weights_digest(state)
    for i, (second, last) in enumerate(KINDS):
        out, direct = tmp_path / f"out{i}{last}", tmp_path / f"direct{i}{last}"
        assert convert(middle, out, second).report.digest == digest
        back, _, report = read_checkpoint(out)
        assert same_bits(back, state)
        assert list(back) == list(state)
        assert (report.digest, report.arch) == (digest, "resnet10-w8")
        if second != "safetensors":  # the backbone file names its source
            convert(start, direct, second)
            assert out.read_bytes() == direct.read_bytes()


def test_metadata_survives_in_the_backbone_file(tmp_path: Path) -> None:
    meta = BackboneMeta("resnet10-w8", "SimSiam", 100, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    save_backbone(tmp_path / "a.safetensors", awkward_state(), meta)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "safetensors")
    _, again = read_backbone(tmp_path / "b.safetensors")
    assert (again.method, again.epochs, again.mean, again.std) == (
        meta.method,
        meta.epochs,
        meta.mean,
        meta.std,
    )


def test_detectron2s_two_files_are_the_same_bytes(tmp_path: Path) -> None:
    start = checkpoints.save(awkward_state(), tmp_path)
    for head in ("c4", "fpn"):
        convert(start, tmp_path / f"{head}.pkl", f"detectron2-{head}")
    assert (tmp_path / "c4.pkl").read_bytes() == (tmp_path / "fpn.pkl").read_bytes()


def test_in_memory_without_files() -> None:
    state = awkward_state()
    arrays = to_detectron2(state)
    back, meta, report = read_checkpoint(arrays)
    assert (report.layout, meta.arch) == ("detectron2", "resnet10-w8")
    assert same_bits(back, state)
    again, _, _ = read_checkpoint({"model": arrays, "__author__": "siambench"})
    assert same_bits(again, state)
    model = build_resnet("resnet10-w8")
    model.load_state_dict(back)
    assert same_bits(read_checkpoint(model)[0], state)


@pytest.mark.parametrize("ending", TARGETS["torchvision"].endings)
def test_torchvision_loads_its_file(ending: str, tmp_path: Path) -> None:
    model, out = checkpoints.make_resnet("resnet18"), tmp_path / f"out{ending}"
    done = convert(checkpoints.save(model.state_dict(), tmp_path), out, "torchvision")
    assert "torchvision.models.resnet18()" in done.report.notes[-1]
    state = torch.load(out, weights_only=True)
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(state)
    with torch.inference_mode():
        images = checkpoints.images()
        assert torch.equal(theirs(images), model(images))


@torch.inference_mode()
@pytest.mark.parametrize(
    "arch",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ],
)
def test_timm_has_the_same_names_and_computes_the_same(arch: str) -> None:
    """At full width: the architecture by its name alone."""
    model, images = checkpoints.make_resnet(arch), checkpoints.images(1, 32)
    theirs = timm.create_model(arch, pretrained=False, num_classes=0).eval()
    assert list(theirs.state_dict()) == list(model.state_dict())
    theirs.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(theirs(images), model(images))


@torch.inference_mode()
@pytest.mark.parametrize("ending", TARGETS["timm"].endings)
@pytest.mark.parametrize("arch", ["resnet18", "resnet50-w16", "wide_resnet50_2-w8"])
def test_timm_loads_its_file_by_the_call_that_is_printed(
    arch: str, ending: str, tmp_path: Path
) -> None:
    model, out = checkpoints.make_resnet(arch), tmp_path / f"out{ending}"
    done = convert(checkpoints.save(model.state_dict(), tmp_path), out, "timm")
    call = done.report.notes[-1].removesuffix(" takes it").replace("...", repr(str(out)))
    theirs = eval(call, {"timm": timm}).eval()
    images = checkpoints.images()
    assert torch.equal(theirs(images), model(images))


def test_timms_safetensors_is_not_a_backbone_file(tmp_path: Path) -> None:
    state, out = awkward_state(), tmp_path / "out.safetensors"
    convert(checkpoints.save(state, tmp_path), out, "timm")
    assert same_bits(load_file(out), state)
    assert not is_backbone_file(out)
    assert read_checkpoint(out)[2].layout == "torchvision, timm (bare names)"
    with pytest.raises(UserError, match="not a siambench backbone; convert it"):
        read_backbone(out)


@pytest.mark.parametrize(
    ("arch", "to", "said"),
    [
        ("resnet10", "torchvision", "torchvision has no resnet10"),
        ("resnet18-w8", "torchvision", r"torchvision has no resnet18-w8; .*'resnet18-w8'\) takes"),
        ("resnet50w2", "torchvision", "torchvision has no resnet50w2"),
        ("resnet10-w8", "timm", "timm has no resnet10"),
        ("resnet50w2-w8", "timm", "timm has no resnet50w2"),
    ],
)
def test_what_a_library_has_no_model_for_is_said(arch: str, to: str, said: str) -> None:
    (note,) = TARGETS[to].usage(BackboneMeta(arch, "SimSiam", 100)).notes
    assert re.match(said, note)


@pytest.mark.parametrize("to", TARGETS)
def test_endings_are_checked_before_anything_is_read(to: str, tmp_path: Path) -> None:
    for ending in {".safetensors", ".pth", ".pt", ".pkl", "", ".PTH"} - {*TARGETS[to].endings}:
        with pytest.raises(UserError, match=f"must end in .* for --to {to}"):
            convert(tmp_path / "absent", tmp_path / f"out{ending}", to)


@pytest.mark.parametrize(
    ("to", "ending"),
    [("safetensors", ".safetensors"), ("torchvision", ".pth"), ("detectron2-c4", ".pkl")],
)
def test_a_full_disk_leaves_what_was_there(to: str, ending: str, tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own: each library says it in its own way."""
    source, out = checkpoints.save(awkward_state(), tmp_path), tmp_path / f"old{ending}"
    out.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from convert import VERBS\n"
        "from siambench.cli import run_verb\n"
        "import convert.run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "sys.exit(run_verb(VERBS['convert'], sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), "--out", str(out), "--to", to],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"cannot write {out}" in done.stderr
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pth", out.name]


@pytest.mark.parametrize(("to", "ending"), KINDS)
def test_files_have_the_mode_that_the_user_asks_for(to: str, ending: str, tmp_path: Path) -> None:
    source, before = checkpoints.save(awkward_state(), tmp_path), os.umask(0o027)
    try:
        convert(source, tmp_path / f"out{ending}", to)
    finally:
        os.umask(before)
    assert (tmp_path / f"out{ending}").stat().st_mode & 0o777 == 0o640
