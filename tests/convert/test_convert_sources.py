"""What can be named as a source besides a file, which encoder is taken, and what a backbone is called."""

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from torch import nn
from torchvision.models.resnet import ResNet

import convert
from siambench import load_backbone
from siambench.backbone import BackboneMeta, save_backbone, weights_digest
from siambench.checkpoints.source import read_checkpoint
from siambench.errors import UserError

TWO = checkpoints.two("module.encoder_q.", "module.encoder_k.")


def test_from_memory_without_a_file() -> None:
    """A module, its state dict, what a trainer would save, and detectron2's arrays: one backbone."""
    model = checkpoints.make_resnet()
    saved = checkpoints.CASES["simsiam"].make(model)
    expected = weights_digest(model.state_dict())
    for source in (model, model.state_dict(), saved):
        state, meta, report = read_checkpoint(source)
        assert report.digest == weights_digest(state) == expected
        said = "the module" if source is model else "the state dict"
        assert (meta.source, meta.source_sha256) == (said, "")
    assert (meta.method, meta.epochs) == ("SimSiam", 100)
    arrays = convert.to_detectron2(state)
    again, _, report = convert.read_checkpoint(arrays)
    assert report.layout == "detectron2"
    assert weights_digest(again) == expected


def test_a_backbone_from_memory_does_not_follow_the_trainer() -> None:
    model, images = checkpoints.make_resnet(), checkpoints.images()
    backbone = load_backbone(model)
    before = backbone.features(images)
    assert torch.equal(before, model(images))
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert torch.equal(backbone.features(images), before)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.train().training


def dilated(model: ResNet) -> None:
    model.layer4[0].conv1.stride = model.layer4[0].downsample[0].stride = (1, 1)


def other_epsilon(model: ResNet) -> None:
    model.layer2[0].bn1.eps = 1e-3


def no_pool(model: ResNet) -> None:
    model.maxpool = nn.Identity()


def other_activation(model: ResNet) -> None:
    model.layer3[0].relu = nn.SiLU()


def ceiling(model: ResNet) -> None:
    model.maxpool.ceil_mode = True


@pytest.mark.parametrize("change", [dilated, other_epsilon, no_pool, other_activation, ceiling])
def test_a_module_that_computes_something_else_is_refused(
    change: Callable[[ResNet], None],
) -> None:
    model = checkpoints.make_resnet()
    change(model)
    with pytest.raises(UserError, match="computes something else"):
        load_backbone(model)


def test_modules_within_modules_are_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrapped, compiled, cut into a Sequential, with a head of any kind behind: the same backbone."""
    for arch in ("resnet10-w8", "resnet18-w8", "resnet50-w8"):
        model = checkpoints.make_resnet(arch)
        expected = weights_digest(model.state_dict())
        cut = nn.Sequential(*list(model.children())[:-1])
        headed = copy.deepcopy(model)
        headed.fc = nn.Linear(3, 3)  # of the wrong width: its forward fails behind layer4
        half = copy.deepcopy(model).half()
        wrapped = nn.ModuleDict({"encoder": model, "predictor": nn.Linear(2, 2)})
        for source in (cut, headed, wrapped, torch.compile(model), half):
            assert read_checkpoint(source)[2].arch == arch
            if source is not half:
                assert read_checkpoint(source)[2].digest == expected
    assert "not known" not in capsys.readouterr().err
    model.forward = None
    read_checkpoint(model)
    assert "whether it computes what torchvision's does is not known" in capsys.readouterr().err


def test_what_is_no_source_is_said() -> None:
    for wrong in (None, 3, [checkpoints.make_resnet().state_dict()], b"x"):
        with pytest.raises(UserError, match=f"a {type(wrong).__name__} is no source"):
            load_backbone(wrong)
    with pytest.raises(UserError, match=r"http://x/y\.pth: download it first"):
        load_backbone("http://x/y.pth")
    with pytest.raises(
        UserError, match="random:resnet10-w8 holds one backbone: there is no branch"
    ):
        load_backbone("random:resnet10-w8", branch="key")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file"):
        load_backbone(tmp_path / "pipe")


def test_memory_is_as_strict_as_a_file() -> None:
    state = checkpoints.make_resnet().state_dict()
    del state["layer2.0.bn1.bias"]
    with pytest.raises(UserError, match=r"the state dict: .* missing: layer2\.0\.bn1\.bias"):
        load_backbone(state)
    whole = checkpoints.make_resnet().state_dict()
    with pytest.raises(UserError, match=r"conv1\.weight is torch\.float32, .*not plain weights"):
        load_backbone({name: t.to("meta") for name, t in whole.items()})


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("checkpoint_0099.pth.tar", "checkpoint_0099"),
        ("r-50.1x_v2.pkl", "r-50.1x_v2"),
        ("no ending", "no-ending"),
    ],
)
def test_any_checkpoint_is_a_backbone_and_has_a_name(file: str, name: str, tmp_path: Path) -> None:
    model = checkpoints.make_resnet()
    backbone = load_backbone(checkpoints.save(model.state_dict(), tmp_path, file))
    assert (backbone.name, backbone.sha256) == (name, weights_digest(model.state_dict()))
    images = checkpoints.images()
    assert torch.equal(backbone.features(images), model(images))
    assert [tuple(x.shape) for x in backbone.stages(images)] == [
        (2, 64, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2),
    ]  # fmt: skip


def test_random_is_a_backbone_too() -> None:
    backbone = load_backbone("random:resnet10-w8")
    assert backbone.name == "random-resnet10-w8-seed-0"
    assert backbone.sha256 == load_backbone("random:resnet10-w8").sha256


def test_the_convention_is_said_and_the_branch_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoints.make_resnet()
    path = checkpoints.save(TWO(model), tmp_path)
    query, key = (load_backbone(path, branch=b) for b in ("", "key"))
    said = capsys.readouterr().err
    assert "MoCo, query branch" in said
    assert (
        "also in the file and not used: resnet10-w8 at 'module.encoder_k.' (convert --branch key)"
        in said
    )
    assert "MoCo, key branch" in said
    assert query.sha256 != key.sha256  # two records, not one
    assert torch.equal(query.resnet.conv1.weight, model.conv1.weight)
    assert torch.equal(key.resnet.conv1.weight, checkpoints.other(model)["conv1.weight"])
    for by_prefix in ("module.encoder_k", "module.encoder_k."):
        assert load_backbone(path, branch=by_prefix).sha256 == key.sha256
    listed = "it has: query ('module.encoder_q.'), key ('module.encoder_k.')"
    with pytest.raises(UserError, match=re.escape(f"has no branch 'teacher'; {listed}")):
        load_backbone(path, branch="teacher")


def test_a_branch_settles_what_no_convention_does(tmp_path: Path) -> None:
    both = checkpoints.two("a.net.", "b.net.")(checkpoints.make_resnet())
    path = checkpoints.save(both, tmp_path)
    with pytest.raises(UserError, match=r"several ResNets .* choose with convert --branch a\.net"):
        read_checkpoint(path)
    state, _, report = read_checkpoint(path, branch="b.net")
    assert torch.equal(state["conv1.weight"], both["b.net.conv1.weight"])
    assert "(convert --branch a.net)" in " ".join(report.notes)
    del both["b.net.conv1.weight"]
    with pytest.raises(UserError, match=r"'b\.net\.', but 1 expected keys missing"):
        read_checkpoint(both, branch="b.net")


def test_a_backbone_file_has_no_branches(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, checkpoints.make_resnet().state_dict(), BackboneMeta("resnet10-w8", "x", 1))
    with pytest.raises(UserError, match="there is no branch 'key'"):
        load_backbone(path, branch="key")


def test_one_flipped_bit_of_a_backbone_file_is_noticed(tmp_path: Path) -> None:
    state, path = checkpoints.make_resnet().state_dict(), tmp_path / "b.safetensors"
    save_backbone(path, state, BackboneMeta("resnet10-w8", "test", 1))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged: its weights are not those it was written with"):
        load_backbone(path)
