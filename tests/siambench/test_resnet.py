"""Architectures: shapes in closed form against torchvision's models, widened ones against hand-built."""

import math
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from siambench.resnet import ARCHS, Shapes, build_resnet, expected_shapes, feature_dim, parse_arch

WIDENED = [name for name, arch in ARCHS.items() if arch.widen > 1]


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of a module's tensors without ``fc``, in its order."""
    state = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    return {k: shape for k, shape in state.items() if not k.startswith("fc.")}


@pytest.mark.parametrize("arch", [a for a in ARCHS if a not in ("resnet10", *WIDENED)])
def test_shapes_are_torchvisions_in_its_order(arch: str) -> None:
    with torch.device("meta"):
        theirs = shapes_of(getattr(torchvision.models, arch)())
    assert list(expected_shapes(arch).items()) == list(theirs.items())


def test_resnet10_is_torchvisions_class_with_one_block_a_layer() -> None:
    with torch.device("meta"):
        theirs = shapes_of(ResNet(BasicBlock, [1, 1, 1, 1]))
    assert list(expected_shapes("resnet10").items()) == list(theirs.items())


@pytest.mark.parametrize("planes", [8, 16, 64, 128])
@pytest.mark.parametrize("arch", ARCHS)
def test_shapes_are_those_of_what_is_built(arch: str, planes: int) -> None:
    """16 planes of a bottleneck are the width at which layer1 needs no downsampling."""
    name = f"{arch}-w{planes}"
    with torch.device("meta"):
        built = shapes_of(build_resnet(name))
    assert list(expected_shapes(name).items()) == list(built.items())
    assert built["layer1.0.conv1.weight"][1] == built["conv1.weight"][0] == 64 * ARCHS[arch].widen
    assert ("layer1.0.downsample.0.weight" in built) == (
        planes * ARCHS[arch].block.expansion != 64 * ARCHS[arch].widen
    )


def hand_built(widen: int, blocks: tuple[int, ...], planes: int) -> nn.Sequential:
    """A bottleneck ResNet with a stem of ``64 * widen`` channels, put together block by block."""
    stem = 64 * widen

    def layer(into: int, inner: int, count: int, stride: int) -> Iterator[Bottleneck]:
        for block in range(count):
            change = None
            if block == 0 and (stride != 1 or into != 4 * inner):
                conv = nn.Conv2d(into, 4 * inner, 1, stride, bias=False)
                change = nn.Sequential(conv, nn.BatchNorm2d(4 * inner))
            yield Bottleneck(into, inner, stride if block == 0 else 1, change)
            into = 4 * inner

    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    into = stem
    for i, count in enumerate(blocks):
        parts[f"layer{i + 1}"] = nn.Sequential(*layer(into, planes << i, count, 1 + (i > 0)))
        into = 4 * planes << i
    return nn.Sequential(parts)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet50w2-w32", "resnet50w4-w8", "resnet50w5-w80"])
def test_widened_networks_compute_what_a_hand_built_one_does(name: str) -> None:
    spec, planes = parse_arch(name)
    assert planes == int(name.rpartition("w")[2])
    torch.manual_seed(0)
    model, theirs = build_resnet(name).eval(), hand_built(spec.widen, (3, 4, 6, 3), planes).eval()
    theirs.load_state_dict(model.state_dict())
    assert list(theirs.state_dict()) == list(model.state_dict()) == list(expected_shapes(name))
    images = torch.randn(1, 3, 64, 64)
    features = model(images)
    assert features.shape == (1, feature_dim(name))
    torch.testing.assert_close(features, theirs(images).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("arch", "dim", "millions"),
    [("resnet50w2", 4096, 94), ("resnet50w4", 8192, 375), ("resnet50w5", 10240, 586)],
)
def test_widened_networks_have_the_published_size(arch: str, dim: int, millions: int) -> None:
    """Parameters in millions without heads, as SwAV (Caron et al. 2020) counts them."""
    parameters = {
        name: math.prod(shape)
        for name, shape in expected_shapes(arch).items()
        if name.endswith(("weight", "bias"))
    }
    assert round(sum(parameters.values()) / 1e6) == millions
    assert feature_dim(arch) == dim
    assert expected_shapes(arch) == expected_shapes(f"{arch}-w{dim // 32}")


def test_random_weights_of_a_seed_are_torchvisions() -> None:
    """What ``random:ARCH`` gives is torchvision's default initialisation, number for number."""
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    torch.manual_seed(3)
    ours = build_resnet("resnet18").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
