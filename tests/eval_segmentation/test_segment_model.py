"""The dilated network, the heads and the loss against torchvision and closed forms."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import FCNHead as TorchvisionHead

from eval_segmentation.config import SegmentConfig
from eval_segmentation.loss import segmentation_loss
from eval_segmentation.model import FCN, FCNHead, dilate, enlarge
from siambench.checkpoints.source import load_backbone
from siambench.distributed import World
from siambench.resnet import build_resnet

ALONE = World(0, 1, torch.device("cpu"))


def _config(**fields: object) -> SegmentConfig:
    return SegmentConfig(backbone="", data="", **fields)


def _random_norms(net: nn.Module) -> None:
    """Batch norms that do something in evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)


def _layers(net: ResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    x = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images))))))
    return net.layer3(x), net.layer4(net.layer3(x))


@pytest.mark.parametrize("arch", ["resnet10-w8", "resnet18-w8", "resnet50-w8"])
def test_dilated_network_holds_the_plain_one_at_every_other_position(arch: str) -> None:
    torch.manual_seed(0)
    net = build_resnet(arch).eval().double()
    _random_norms(net)
    images = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        plain3, plain4 = _layers(net, images)
        dilate(net)
        layer3, layer4 = _layers(net, images)
    assert layer3.shape[2:] == layer4.shape[2:] == (12, 8)
    torch.testing.assert_close(layer3[..., ::2, ::2], plain3)
    torch.testing.assert_close(layer4[..., ::4, ::4], plain4)


def test_bottlenecks_dilate_as_torchvision_does() -> None:
    torch.manual_seed(0)
    ours = build_resnet("resnet50").eval()
    _random_norms(ours)
    theirs = ResNet(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True])
    theirs.load_state_dict(ours.state_dict(), strict=False)
    dilate(ours)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(_layers(ours, images), _layers(theirs.eval(), images), strict=True):
            assert torch.equal(a, b)


def test_auxiliary_head_has_the_shapes_of_torchvisions() -> None:
    ours = FCNHead(1024, 256, 21, convs=1, dropout=0.1)
    theirs = TorchvisionHead(1024, 21)
    assert sorted(p.shape for p in ours.parameters()) == sorted(
        p.shape for p in theirs.parameters()
    )


def test_main_head_reads_its_input_and_its_own_output() -> None:
    head = FCNHead(2048, 512, 21, convs=2, concat=True, dropout=0.1)
    shapes = [tuple(m.weight.shape) for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [
        (512, 2048, 3, 3),
        (512, 512, 3, 3),
        (512, 2048 + 512, 3, 3),
        (21, 512, 1, 1),
    ]
    assert math.isclose(float(head.classifier.weight.detach().std()), 0.01, rel_tol=0.05)
    fan_out = math.sqrt(2 / (512 * 9))  # Kaiming's, of mmcv's ConvModule
    assert math.isclose(float(head.convs[0][0].weight.detach().std()), fan_out, rel_tol=0.01)


def test_fcn_starts_from_the_backbone_and_leaves_it_alone(backbone_file: Path) -> None:
    backbone = load_backbone(backbone_file)
    before = {k: v.clone() for k, v in backbone.resnet.state_dict().items()}
    model = FCN(backbone, 5, _config(head_channels=16, aux_channels=8)).train()
    for name, tensor in model.resnet.state_dict().items():
        assert torch.equal(tensor, before[name])
    logits, aux = model(torch.randn(2, 3, 64, 41), [1, 3])
    assert logits.shape == aux.shape == (2, 5, 8, 6)
    (logits.sum() + aux.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(model.resnet.bn1.running_mean, before["bn1.running_mean"])  # BN trains
    for name, tensor in backbone.resnet.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.eval()(torch.randn(1, 3, 64, 64))[1] is None
    assert (
        FCN(backbone, 5, _config(aux_weight=0.0)).train()(torch.randn(2, 3, 64, 64), [1, 3])[1]
        is None
    )


def test_loss_divides_by_all_pixels() -> None:
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]]]])  # (1, 2 classes, 1, 2)
    labels = torch.tensor([[[0, 255]]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 1)) / 2
    assert math.isclose(segmentation_loss(logits, labels, _config(), ALONE), expected, rel_tol=1e-6)
    nothing = segmentation_loss(logits, torch.full((1, 1, 2), 255), _config(), ALONE)
    assert nothing == 0  # torch's mean would be NaN


@pytest.mark.parametrize("align_corners", [False, True])
def test_enlarge_keeps_what_is_linear(align_corners: bool) -> None:
    ramp = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 3, 5).bfloat16()
    large = enlarge(ramp, (9, 17), align_corners)
    assert large.dtype == torch.float32
    expected = (
        torch.linspace(0, 4, 17) if align_corners else ((torch.arange(17) + 0.5) * 5 / 17) - 0.5
    )
    torch.testing.assert_close(large[0, 0, 4], expected.clamp(0, 4), atol=1e-5, rtol=0)
