"""Agreement with the real detectron2, where it is installed: `pytest -m detectron2`."""

import numpy as np
import pytest
import torch
from agreement import (
    CLASSES,
    assert_agree,
    config_of,
    our_model,
    ours_of,
    their_model,
    theirs_of,
)

from eval_detection.masks import crop_mask, paste
from eval_detection.torchvision_engine.loader import resized_shape
from eval_detection.torchvision_engine.names import to_detectron2
from eval_detection.torchvision_engine.network import build_detector
from eval_detection.torchvision_engine.precise_bn import precise_bn
from eval_detection.torchvision_engine.train import learning_rate
from eval_detection.voc_ap import IOUS, Truth, average_precision, judge
from siambench.resnet import build_resnet

pytestmark = pytest.mark.detectron2
SIZES = [(64, 110), (70, 97)]  # the second is padded
CASES = {
    "c4": ("resnet50-w8", {"network": "c4", "mask": True}),
    "c4 plain, frozen": ("resnet50-w8", {"network": "c4", "extra_norm": False, "freeze_at": 3}),
    "fpn": (
        "resnet50-w8",
        {
            "network": "fpn",
            "mask": True,
            "pooler_resolution": 7,
            "rpn_post_nms_train": 30,
            "rpn_post_nms_test": 50,
            "detections_per_image": 25,
        },
    ),
    "fpn plain, frozen, basic blocks": (
        "resnet18",
        {"network": "fpn", "extra_norm": False, "freeze_at": 2, "pooler_resolution": 7},
    ),
}


@pytest.fixture(scope="module", params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def both(request):
    """Both networks of the same weights after the same training step, and all that they computed."""
    arch, changes = CASES[request.param]
    config = config_of(**changes)
    ours, theirs = our_model(arch, config), their_model(arch, config)
    expected = theirs_of(theirs, config, SIZES)
    found = ours_of(ours, SIZES, [expected[f"proposals{i}"] for i in range(len(SIZES))])
    for values in (found, expected):
        sum(value for name, value in values.items() if name.startswith("loss")).backward()
    return ours, theirs, found, expected


def test_networks_agree(both) -> None:
    """Features, proposals, heads on the same proposals, detections, losses."""
    _, _, found, expected = both
    assert_agree(found, expected, len(SIZES))
    assert all(value > 0 for name, value in found.items() if name.startswith("loss"))


def test_gradients_and_statistics_agree(both) -> None:
    """And so what is frozen: neither has a gradient or moved statistics there.

    In a C4 network whose regions are drawn in another order our own gradients differ by up to 3e-3:
    batch norms sum in another order, and a ReLU near 0 goes the other way.
    """
    ours, theirs, _, _ = both
    most = {"c4": 1e-2, "fpn": 2e-3}[ours.config.network]
    gradients = to_detectron2({n: p.grad for n, p in ours.named_parameters() if p.requires_grad})
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < most, (name, error)
    state = theirs.state_dict()
    for name, tensor in to_detectron2(ours.state_dict()).items():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(tensor, state[name], atol=1e-5, rtol=1e-4, msg=name)


def test_their_checkpointer_reads_our_detector(both, tmp_path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    ours, theirs, _, _ = both
    state = to_detectron2(ours.state_dict())
    torch.save({"model": state}, tmp_path / "detector.pth")
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            tensor.zero_()
    DetectionCheckpointer(theirs, save_dir=str(tmp_path)).load(str(tmp_path / "detector.pth"))
    found = theirs.state_dict()
    counts = {n for n in found if n not in state}  # of batches, which no frozen norm of ours has
    assert all(name.endswith("num_batches_tracked") for name in counts)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name
    theirs.load_state_dict(before)


def test_initial_weights_are_drawn_alike() -> None:
    """Spread, bounds and zeros of every layer that is not the backbone's."""
    for arch, changes in (CASES["c4"], CASES["fpn"]):
        config = config_of(**changes)
        torch.manual_seed(0)
        ours = to_detectron2(build_detector(build_resnet(arch), CLASSES, config).state_dict())
        theirs = their_model(arch, config, initial=True).state_dict()
        heads = [n for n in ours if "bottom_up" not in n and ".stem." not in n and "res" not in n]
        assert len(heads) > 10
        for name in heads:
            a, b = ours[name].float(), theirs[name].float()
            if a.numel() < 300 or b.std() == 0:
                continue
            error = 6 / a.numel() ** 0.5  # of an estimated spread, in 6 standard deviations or more
            assert float(a.std() / b.std()) == pytest.approx(1, abs=error), name
            ratio = float(a.abs().max() / a.std()), float(b.abs().max() / b.std())
            assert (ratio[0] < 1.75) == (ratio[1] < 1.75), name  # uniform or normal
        for name in (n for n in heads if theirs[n].float().abs().max() == 0):
            assert not ours[name].any(), name


def test_mask_targets_and_pasting_agree() -> None:
    from detectron2.layers import paste_masks_in_image
    from detectron2.structures import BitMasks
    from detectron2.structures.masks import rasterize_polygons_within_box
    from pycocotools import mask as rle_tools

    rng = np.random.default_rng(0)
    polygons = [rng.uniform(0, 60, 12), rng.uniform(0, 60, 8)]
    for _ in range(20):
        corner = rng.uniform(0, 40, 2)
        box = np.concatenate((corner, corner + rng.uniform(1, 30, 2))).astype(np.float32)
        expected = rasterize_polygons_within_box(polygons, box, 14).numpy()
        np.testing.assert_array_equal(crop_mask(polygons, box, 14), expected)
        bitmap = (rng.random((60, 64)) < 0.5).astype(np.uint8)
        expected = BitMasks(torch.from_numpy(bitmap)[None]).crop_and_resize(
            torch.from_numpy(box)[None], 14
        )[0]
        np.testing.assert_array_equal(crop_mask(bitmap, box, 14), expected.numpy())
    masks = torch.rand(30, 14, 14, generator=torch.Generator().manual_seed(0))
    corner = torch.from_numpy(rng.uniform(0, 70, (30, 2))).float()
    boxes = torch.cat((corner, corner + torch.from_numpy(rng.uniform(0.5, 25, (30, 2)))), 1).float()
    expected = paste_masks_in_image(masks, boxes, (90, 95)).numpy()
    found = np.stack([rle_tools.decode(code) for code in paste(masks, boxes, 90, 95)])
    np.testing.assert_array_equal(found.astype(bool), expected)


def test_learning_rate_agrees() -> None:
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    config = config_of(max_iter=300, steps=[200, 250], warmup_iters=40, lr=0.02)
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 300, (200, 250), 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration in range(300):
        assert learning_rate(config.schedule(), iteration) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        scheduler.step()


def test_resized_shape_agrees() -> None:
    from detectron2.data.transforms import ResizeShortestEdge

    rng = np.random.default_rng(0)
    for height, width, shorter in rng.integers(20, 1500, (500, 3)).tolist():
        expected = ResizeShortestEdge.get_output_shape(height, width, shorter, 1333)
        assert resized_shape(height, width, shorter, 1333) == expected


def test_precise_bn_agrees() -> None:
    from fvcore.nn.precise_bn import update_bn_stats

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    )
    sides = (4, 9, 32, 17, 5)  # of the images: a batch counts by its values
    batches = [torch.randn(2, 3, side, side) * (1 + i) + i for i, side in enumerate(sides)]
    update_bn_stats(model, iter(batches), 5)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    model[1].reset_running_stats()
    precise_bn(model, ((lambda b=batch: model(b)) for batch in batches))
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(model.state_dict()[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["11-point", "all-points"])
def test_voc_ap_agrees(tmp_path, rule: str) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval

    rng = np.random.default_rng(3)
    truths, hard, lines, images, boxes, scores = [], [], [], [], [], []
    for i in range(12):
        corner = rng.integers(1, 60, (4, 2))
        truth = np.concatenate((corner, corner + rng.integers(5, 40, (4, 2))), axis=1)
        difficult = rng.random(4) < 0.3
        objects = "".join(
            f"<object><name>cat</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>{int(d)}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for (x0, y0, x1, y1), d in zip(truth.tolist(), difficult, strict=True)
        )
        (tmp_path / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
        truths.append(truth.astype(float))
        hard.append(difficult)
        for box in np.repeat(truth, 3, axis=0) + rng.normal(0, 3, (12, 4)):
            score = rng.random()
            images.append(i)
            boxes.append(box)
            scores.append(score)
            lines.append(" ".join(map(repr, [i, score, *box.tolist()])))
    (tmp_path / "cat.txt").write_text("\n".join(lines))
    (tmp_path / "list.txt").write_text("\n".join(map(str, range(12))))
    objects = Truth(np.arange(12).repeat(4), np.concatenate(truths), np.concatenate(hard))
    positives = int((~objects.difficult).sum())
    hits = judge(objects, np.array(images), np.array(boxes), np.array(scores))
    parse_rec.cache_clear()
    for hit, iou in zip(hits, IOUS, strict=True):
        _, _, expected = voc_eval(
            str(tmp_path / "{}.txt"),
            str(tmp_path / "{}.xml"),
            str(tmp_path / "list.txt"),
            "cat",
            iou,
            use_07_metric=rule == "11-point",
        )
        assert average_precision(hit, positives, rule) == pytest.approx(expected, abs=1e-9)
