"""The backbone file: what is written is read back, and nothing else is."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from siambench.backbone import BackboneMeta, read_backbone, save_backbone
from siambench.checkpoints.source import load_backbone
from siambench.errors import UserError
from siambench.resnet import build_resnet, expected_shapes, feature_dim


def _rewrite(source: Path, target: Path, change) -> Path:
    """A backbone file changed by ``change(tensors, metadata)``."""
    _, meta = read_backbone(source)
    tensors, strings = load_file(source), meta.to_strings()
    change(tensors, strings)
    save_file(tensors, target, metadata=strings)
    return target


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_names_and_shapes_are_torchvisions(arch):
    theirs = getattr(torchvision.models, arch)().state_dict()
    ours = expected_shapes(arch)
    assert ours == {k: tuple(v.shape) for k, v in theirs.items() if not k.startswith("fc.")}


def test_resnet50_has_318_tensors():
    assert len(expected_shapes("resnet50")) == 318
    assert sum("num_batches" not in name for name in expected_shapes("resnet50")) == 265


def test_narrow_network_has_the_width_it_says():
    net = build_resnet("resnet18-w16")
    assert feature_dim("resnet18-w16") == 128
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 128)
    assert net.layer1[0].conv1.weight.shape == (16, 64, 3, 3)


def test_round_trip(backbone_file, tmp_path):
    state, meta = read_backbone(backbone_file)
    copy = tmp_path / "copy.safetensors"
    save_backbone(copy, state, meta)
    again, meta_again = read_backbone(copy)
    assert meta_again == meta
    assert all(torch.equal(state[k], again[k]) for k in state)
    assert copy.read_bytes() == backbone_file.read_bytes()


def test_features_equal_the_plain_network(backbone_file):
    backbone = load_backbone(backbone_file)
    plain = build_resnet("resnet10-w16")
    plain.load_state_dict(read_backbone(backbone_file)[0])
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(images), plain.eval()(images))
    shapes = [tuple(s.shape[1:]) for s in backbone.stages(images)]
    assert shapes == [(64, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]


def test_frozen_whatever_train_says(backbone_file):
    backbone = load_backbone(backbone_file).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.features(torch.randn(4, 3, 64, 64))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("layer1.0.conv1.weight"), "missing layer1.0.conv1.weight"),
        (lambda t, m: t.update({"fc.weight": torch.zeros(2, 2)}), "unexpected fc.weight"),
        (lambda t, m: t.update({"bn1.weight": torch.ones(3)}), "bn1.weight has shape (3,)"),
        (lambda t, m: t["bn1.weight"].fill_(float("nan")), "bn1.weight holds NaN"),
        (lambda t, m: m.update(arch="resnet18"), "not a whole resnet18"),
        (lambda t, m: m.update(arch="vit"), "architecture 'vit' is unknown"),
        (lambda t, m: m.update(format_version="9"), "format version '9'"),
        (lambda t, m: m.update(std="[0, 1, 1]"), "metadata is damaged"),
        (lambda t, m: m.pop("method"), "metadata is damaged"),
        (lambda t, m: m.clear(), "not a siambench backbone"),
    ],
)
def test_refuses_what_is_not_whole(backbone_file, tmp_path, change, message):
    broken = _rewrite(backbone_file, tmp_path / "b.safetensors", change)
    with pytest.raises(UserError) as error:
        read_backbone(broken)
    assert message in str(error.value)
    assert str(broken) in str(error.value) or "architecture" in message


def test_refuses_damaged_absent_and_foreign_files(backbone_file, tmp_path):
    whole = backbone_file.read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "page": b"<!DOCTYPE html><html>Not found</html>",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a whole backbone file"):
            read_backbone(path)
    with pytest.raises(UserError, match="does not exist"):
        read_backbone(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match="is not a file"):
        read_backbone(tmp_path)


def test_nothing_is_written_for_a_partial_state(tmp_path):
    state = build_resnet("resnet10-w16").state_dict()
    del state["conv1.weight"]
    path = tmp_path / "b.safetensors"
    with pytest.raises(UserError, match=r"missing conv1\.weight; nothing was written"):
        save_backbone(path, state, BackboneMeta("resnet10-w16", "x", None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arch", ["resnet9", "resnet18-w30", "resnet18-w0", "", "resnet18-w"])
def test_unknown_architectures(arch):
    with pytest.raises(UserError, match="is unknown; known: resnet10"):
        build_resnet(arch)


def test_the_readmes_example(tmp_path, monkeypatch):
    """Its very lines, with a ResNet-50 under the name that they use."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    resnet = build_resnet("resnet50").eval()
    save_backbone("simsiam.safetensors", resnet.state_dict(), BackboneMeta("resnet50", "x", 1))
    found: dict = {}
    exec(lines, found)
    assert len([line for line in lines.splitlines() if line]) == 4
    assert found["features"].shape == (1, 2048)
    assert torch.equal(found["features"], resnet(found["images"]))
    assert [tuple(x.shape[1:]) for x in found["stages"]] == [
        (64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7),
    ]  # fmt: skip
