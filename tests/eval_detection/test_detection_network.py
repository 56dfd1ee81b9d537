"""The networks by themselves: gradients, frozen stages, the pyramid's parts, names."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork, batched_nms, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.ops.poolers import LevelMapper

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.detector import Detector
from eval_detection.torchvision_engine.fpn import Pyramid, levels_of, pool
from eval_detection.torchvision_engine.names import from_detectron2, to_detectron2
from eval_detection.torchvision_engine.network import build_detector
from eval_detection.torchvision_engine.rois import draw_rois
from eval_detection.torchvision_engine.rpn import Dense, Target
from siambench.checkpoints.names import to_detectron2 as backbone_to_detectron2
from siambench.checkpoints.source import load_backbone
from siambench.resnet import ARCHS, build_resnet

NETWORKS = ["c4", "fpn"]
BOTH = pytest.mark.parametrize("network", NETWORKS)


def config_of(network: str, **changes) -> DetectConfig:
    fields = {
        "network": network,
        "anchor_sizes": [16, 32] if network == "c4" else [8, 16, 32, 48, 64],
        "rpn_batch_per_image": 32 if network == "c4" else 3000,  # all, so that every level is hit
        "rpn_pre_nms_train": 100,
        "rpn_post_nms_train": 50,
        "rpn_pre_nms_test": 50,
        "rpn_post_nms_test": 10,
        "rois_per_image": 8,
        "pooler_resolution": 4,
    }
    return DetectConfig(backbone="", data="", **{**fields, **changes})


def model_of(network: str, arch: str = "resnet10-w16", classes: int = 3, **changes) -> Detector:
    torch.manual_seed(0)
    return build_detector(build_resnet(arch), classes, config_of(network, **changes))


def two_images() -> tuple[torch.Tensor, list[tuple[int, int]], list[Target]]:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 10, 40, 50], [50, 5, 90, 40]])
    masks = [[b[[0, 1, 2, 1, 2, 3]].double().numpy()] for b in boxes]
    target = Target(boxes, torch.tensor([0, 2]), masks)
    return images, [(64, 96), (64, 80)], [target, target]


@pytest.mark.parametrize("arch", ["resnet10-w16", "resnet50-w8"])
@pytest.mark.parametrize("mask", [False, True])
@BOTH
def test_every_parameter_is_trained(network: str, arch: str, mask: bool) -> None:
    model = model_of(network, arch, mask=mask, rois_per_image=32).train()
    losses = model(*two_images(), (0, 1))
    assert set(losses) == {"rpn_cls", "rpn_box", "cls", "box"} | ({"mask"} if mask else set())
    sum(losses.values()).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    found = model.eval().detect(*two_images()[:2])
    assert len(found) == 2
    assert (found[0].masks is not None) == mask


@BOTH
def test_first_losses_are_those_of_knowing_nothing(network: str) -> None:
    """At initialisation every class is equally likely, and so is every anchor and mask cell."""
    changes = {"mask": True, "extra_norm": False, "rpn_batch_per_image": 32}
    model = model_of(network, classes=9, **changes).train()
    losses = model(*two_images(), (0, 1))
    half = torch.tensor(2.0).log()
    torch.testing.assert_close(losses["cls"], torch.tensor(10.0).log(), atol=0.3, rtol=0)
    torch.testing.assert_close(losses["rpn_cls"], half, atol=0.05, rtol=0)
    torch.testing.assert_close(losses["mask"], half, atol=0.05, rtol=0)


@BOTH
def test_images_without_objects_train_on_background_alone(network: str) -> None:
    """Every parameter has a gradient all the same: processes wait for each other's."""
    model = model_of(network, mask=True).train()
    images, sizes, (target, _) = two_images()
    empty = Target(torch.empty(0, 4), torch.empty(0, dtype=torch.long), [])
    for targets in ([empty, target], [target, empty]):
        assert all(value > 0 for value in model(images, sizes, targets, (0, 1)).values())
    losses = model(images, sizes, [empty, empty], (0, 1))
    assert losses["box"] == losses["mask"] == losses["rpn_box"] == 0
    assert losses["cls"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_are_the_backbones(backbone_file: Path) -> None:
    backbone = load_backbone(backbone_file)
    images = torch.randn(2, 3, 64, 96)
    for network in NETWORKS:
        resnet = build_resnet(backbone.meta.arch)
        resnet.load_state_dict(backbone.resnet.state_dict())
        model = build_detector(resnet, 3, config_of(network, extra_norm=False)).eval()
        with torch.no_grad():
            stages = backbone.stages(images)
            found = model.body.stages(images)
            if network == "c4":
                torch.testing.assert_close(model.body(images), [stages[3]])
                found.append(model.head.layer4(stages[3]))
        torch.testing.assert_close(found, list(stages[1:]))


@BOTH
def test_detections_do_not_depend_on_the_batch(network: str) -> None:
    model = model_of(network, mask=True, score_threshold=0.2, detections_per_image=10).eval()
    images = torch.randn(3, 3, 64, 96)
    together = model.detect(images, [(64, 96)] * 3)
    assert sum(len(d.boxes) for d in together) > 3
    for i, expected in enumerate(together):
        alone = model.detect(images[i : i + 1], [(64, 96)])[0]
        torch.testing.assert_close(alone.boxes, expected.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.masks, expected.masks, atol=1e-4, rtol=1e-4)


def test_draws_are_an_images_own() -> None:
    """An image's seed decides what is drawn of it, whatever else is in the batch."""
    model = model_of("c4").train()
    images, _, targets = two_images()
    dense = model.rpn(model.body(images))

    def losses(rows: list[int], seeds: list[int]) -> torch.Tensor:
        part = Dense(dense.anchors, dense.logits[rows], dense.deltas[rows], dense.levels)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack(
            list(model.rpn.losses(part, [targets[i] for i in rows], generators).values())
        )

    alone = torch.stack([losses([0], [5]), losses([1], [6])])
    torch.testing.assert_close(losses([0, 1], [5, 6]), alone.mean(dim=0))
    torch.testing.assert_close(losses([1, 0], [6, 5]), alone.mean(dim=0))
    assert not torch.allclose(losses([0], [7]), alone[0])


def test_half_of_the_anchors_and_a_quarter_of_the_regions_are_of_objects() -> None:
    """detectron2, RPN.POSITIVE_FRACTION 0.5 and ROI_HEADS.POSITIVE_FRACTION 0.25, of 32 each."""
    model = model_of("c4", rpn_batch_per_image=32)
    _, _, (target, _) = two_images()
    generator = torch.Generator().manual_seed(0)
    near, far = target.boxes.repeat(50, 1), target.boxes.repeat(50, 1) + 200
    anchors = torch.cat((near, far))
    logits = torch.full((1, 200), 9.0)  # right of an object, and wrong of the background
    dense = Dense(anchors, logits, torch.zeros(1, 200, 4), [200])
    loss = model.rpn.losses(dense, [target], [generator])["rpn_cls"]
    torch.testing.assert_close(loss, torch.tensor(9.0) / 2, atol=1e-3, rtol=0)
    rois = draw_rois([anchors], [target], [generator], classes=3, count=32, masks=True)
    assert rois.counts == [8]
    assert rois.labels[:8].tolist() == [0 if box[0] == 10 else 2 for box in rois.boxes[0][:8]]
    assert rois.labels[8:].tolist() == [3] * 24
    assert torch.equal(rois.truth, rois.boxes[0][:8])
    assert torch.equal(rois.found, torch.arange(8))


@pytest.mark.parametrize("freeze_at", [0, 1, 3, 4, 5])
@BOTH
def test_frozen_stages_stay_as_they_are(network: str, freeze_at: int) -> None:
    """Weights and statistics of the first stages stay through a step, all others change."""
    model = model_of(network, freeze_at=freeze_at).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sum(model(*two_images(), (0, 1)).values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(trained, lr=0.1).step()
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)][:freeze_at]
    frozen = tuple(f"body.stages.{part}." for parts in stages for part in parts)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen or ("none",)), name
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert bool(norms) == bool(freeze_at)


def test_frozen_norms_compute_what_they_did() -> None:
    resnet = build_resnet("resnet10-w16")
    for norm in (m for m in resnet.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-3
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 64, 64)
    outputs = []
    for freeze_at in (0, 5):
        model = build_detector(resnet, 3, config_of("fpn", freeze_at=freeze_at))
        with torch.no_grad():
            outputs.append(model.train(freeze_at > 0).body.stages(images))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_the_pyramid_is_torchvisions() -> None:
    torch.manual_seed(0)
    model = Pyramid(build_resnet("resnet10-w16"), config_of("fpn", extra_norm=False)).eval()
    theirs = FeaturePyramidNetwork(model.stages.channels, 256, LastLevelMaxPool())
    state = model.state_dict()
    for name in theirs.state_dict():
        blocks, index, _, part = name.split(".")
        source = {"inner_blocks": "lateral", "layer_blocks": "output"}[blocks]
        theirs.state_dict()[name].copy_(state[f"{source}.{index}.{part}"])
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        stages = model.stages(images)
        expected = theirs({str(i): stage for i, stage in enumerate(stages)})
        torch.testing.assert_close(model(images), list(expected.values()))


def test_levels_are_torchvisions() -> None:
    """224 px are level 4; twice the size is one level up; nothing is below p2 or above p5."""
    sides = torch.tensor([0.0, 10, 111, 113, 223, 225, 447, 449, 2000])
    boxes = torch.stack((sides * 0, sides * 0, sides, sides), dim=1)
    assert levels_of(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    corner = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 500
    size = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) ** 2 * 900
    boxes = torch.cat((corner, corner + size), dim=1)
    expected = LevelMapper(2, 5)([boxes])
    assert torch.equal(levels_of(boxes), expected)
    assert len(expected.unique()) == 4


def test_regions_are_cut_from_their_levels_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 256, 64 >> i, 64 >> i, generator=generator) for i in range(5)]
    corner = torch.rand(20, 2, generator=generator) * 100
    boxes = torch.cat((corner, corner + torch.rand(20, 2, generator=generator) * 700), dim=1)
    found = pool(maps, [boxes[:7], boxes[7:]], 3)
    for i, box in enumerate(boxes):
        level = int(levels_of(box[None]))
        image = maps[level][int(i >= 7)][None]
        expected = roi_align(image, [box[None]], 3, 1 / (4 << level), 0, True)
        torch.testing.assert_close(found[i], expected[0])
    assert len(levels_of(boxes).unique()) == 4
    assert pool(maps, [boxes[:0], boxes[:0]], 3).shape == (0, 256, 3, 3)


def test_proposals_are_the_best_of_every_level() -> None:
    """Top of a level, suppressed within it, then the best of all, without those that are empty."""
    model = model_of("fpn", rpn_pre_nms_test=5, rpn_post_nms_test=8).eval()
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * 60
    anchors = torch.cat((corner, corner + 5 + 20 * torch.rand(60, 2, generator=generator)), dim=1)
    logits = torch.randn(1, 60, generator=generator)
    logits[0, 3], anchors[3] = 9.0, torch.tensor([70.0, 70, 90, 90])  # outside of the image
    anchors[[1, 30]] = anchors[0].clone()  # on its own level and on the next
    logits[0, [0, 1, 30]] = torch.tensor([8.0, 7, 6])
    dense = Dense(anchors, logits, torch.zeros(1, 60, 4), [30, 20, 10])
    (found,) = model.rpn.proposals(dense, [(64, 64)])
    rows = [logits[0, a:b].topk(5).indices + a for a, b in [(0, 30), (30, 50), (50, 60)]]
    rows = torch.cat(rows)
    level = torch.arange(3).repeat_interleave(5)[rows != 3]
    rows = rows[rows != 3]
    boxes = anchors[rows].clamp(0, 64)
    keep = batched_nms(boxes, logits[0, rows], level, 0.7)[:8]
    torch.testing.assert_close(found, boxes[keep])
    assert len(found) == 8
    twice = torch.isclose(found, anchors[0].clamp(0, 64), atol=1e-3).all(dim=1)
    assert twice.sum() == 2


@pytest.mark.parametrize("arch", sorted(ARCHS))
@BOTH
def test_names_lead_to_detectron2_and_back(network: str, arch: str) -> None:
    """The backbone's are those that a converted checkpoint has, the others are in the golden file."""
    with torch.device("meta"):
        resnet = build_resnet(arch)
        body = set(resnet.state_dict())
        model = build_detector(resnet, 3, config_of(network, mask=True))
    state = model.state_dict()
    theirs = to_detectron2(state)
    assert len(theirs) == len(state)
    back = from_detectron2(theirs)
    assert list(back) == list(state)
    assert all(back[name] is tensor for name, tensor in state.items())
    expected = backbone_to_detectron2({name: torch.empty(0) for name in body})
    prefix = {"c4": "backbone.", "fpn": "backbone.bottom_up."}[network]
    for name in expected:
        top = network == "c4" and name.startswith("res5.")
        assert ("roi_heads." if top else prefix) + name in theirs, name


def test_unknown_names_are_refused() -> None:
    for convert in (to_detectron2, from_detectron2):
        with pytest.raises(ValueError, match=r"^classifier.weight is no name"):
            convert({"classifier.weight": torch.empty(0)})
