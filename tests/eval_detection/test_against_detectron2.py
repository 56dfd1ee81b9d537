"""Agreement with the real detectron2, where it is installed: `pytest -m detectron2`."""

import numpy as np
import pytest
import torch

from eval_detection.config import DetectConfig
from eval_detection.masks import crop_mask, paste
from eval_detection.metrics import _truth
from eval_detection.samples import as_sample
from eval_detection.torchvision_engine.c4 import C4
from eval_detection.torchvision_engine.loader import resized_shape
from eval_detection.torchvision_engine.precise_bn import precise_bn
from eval_detection.torchvision_engine.rpn import Target
from eval_detection.torchvision_engine.train import learning_rate
from eval_detection.voc_ap import IOUS, average_precision, judge
from siambench.resnet import build_resnet

pytestmark = pytest.mark.detectron2
CLASSES = 5
PARTS = {
    "stem.0": "backbone.stem.conv1",
    "stem.1": "backbone.stem.conv1.norm",
    "res2": "backbone.res2",
    "res3": "backbone.res3",
    "res4": "backbone.res4",
    "res5": "roi_heads.res5",
    "rpn.conv": "proposal_generator.rpn_head.conv",
    "rpn.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "cls_score": "roi_heads.box_predictor.cls_score",
    "bbox_pred": "roi_heads.box_predictor.bbox_pred",
    "mask_head.0": "roi_heads.mask_head.deconv",
    "mask_head.2": "roi_heads.mask_head.predictor",
}
INSIDE = [("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm")]
INSIDE += [(f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)]


def detectron2_name(name: str) -> str:
    part = next(p for p in PARTS if name.startswith(p + "."))
    rest = name[len(part) :]
    for ours, theirs in INSIDE:
        rest = rest.replace(f".{ours}.", f".{theirs}.")
    return PARTS[part] + rest


def our_config(**changes) -> DetectConfig:
    fields = {
        "mask": True,
        "anchor_sizes": [16, 32, 64],
        "rpn_batch_per_image": 10**6,  # every anchor and every proposal is drawn:
        "rois_per_image": 10**5,  # no chance is left in the losses
        "rpn_post_nms_train": 60,
        "rpn_post_nms_test": 200,
    }
    return DetectConfig(backbone="", data="", **{**fields, **changes})


def their_model(config: DetectConfig):
    """detectron2's Mask R-CNN C4 with batch norm, built of its own parts."""
    from detectron2.config import get_cfg
    from detectron2.layers import get_norm
    from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
    from detectron2.modeling.roi_heads import Res5ROIHeads

    class ExtraNorm(Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg):
            blocks, channels = super()._build_res5_block(cfg)
            blocks.add_module("norm", get_norm("BN", channels))
            return blocks, channels

    if "ExtraNorm" not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(ExtraNorm)
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE, model.MASK_ON, model.BACKBONE.FREEZE_AT = "cpu", True, 0
    resnets = model.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = 50, "BN", False
    resnets.WIDTH_PER_GROUP, resnets.RES2_OUT_CHANNELS = 16, 64
    model.ROI_HEADS.NAME, model.ROI_HEADS.NUM_CLASSES = "ExtraNorm", CLASSES
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = config.rois_per_image
    model.RPN.BATCH_SIZE_PER_IMAGE = config.rpn_batch_per_image
    model.RPN.POST_NMS_TOPK_TRAIN = config.rpn_post_nms_train
    model.RPN.POST_NMS_TOPK_TEST = config.rpn_post_nms_test
    model.ANCHOR_GENERATOR.SIZES = [config.anchor_sizes]
    model.PIXEL_MEAN, model.PIXEL_STD = [0.0] * 3, [1.0] * 3
    return build_model(cfg)


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, height // 8, width // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def targets_of(sizes, seed: int) -> list[Target]:
    rng = np.random.default_rng(seed)
    targets = []
    for height, width in sizes:
        corner = rng.uniform(0, [width - 50, height - 50], (3, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(15, 50, (3, 2))), axis=1)
        masks = [[np.array([x0, y0, x1, y0, (x0 + x1) / 2, y1])] for x0, y0, x1, y1 in boxes]
        labels = torch.from_numpy(rng.integers(0, CLASSES, 3))
        targets.append(Target(torch.from_numpy(boxes).float(), labels, masks))
    return targets


@pytest.fixture(scope="module")
def models():
    """Ours and theirs with the same weights, random but such that hundreds of things are found."""
    torch.manual_seed(0)
    config = our_config()
    ours = C4(build_resnet("resnet50-w16"), CLASSES, config)
    with torch.no_grad():
        ours.cls_score.weight.normal_(0, 0.3)
        ours.cls_score.bias[-1] = -10  # little background
        ours.bbox_pred.weight.normal_(0, 0.3)
        ours.rpn.objectness.weight.normal_(0, 0.1)
        ours.rpn.deltas.weight.normal_(0, 0.05)
        ours.mask_head[2].weight.normal_(0, 0.2)
    images = torch.stack([picture(96, 160, seed) for seed in range(4)])
    sizes = [(96, 160)] * 4
    targets = targets_of(sizes, seed=0)
    precise_bn(ours, [lambda: ours(images, sizes, targets, range(len(sizes)))])
    theirs = their_model(config)
    state = {detectron2_name(name): tensor for name, tensor in ours.state_dict().items()}
    missing = set(theirs.state_dict()) ^ set(state)
    assert not {name for name in missing if "cell_anchors" not in name and "pixel_" not in name}
    theirs.load_state_dict(state, strict=False)
    return ours, theirs


@pytest.mark.parametrize(("height", "width"), [(96, 160), (101, 147)])
def test_inference_agrees(models, height: int, width: int) -> None:
    ours, theirs = models
    ours.eval()
    theirs.eval()
    image = picture(height, width, seed=1)
    with torch.no_grad():
        features = ours.features(image[None])
        torch.testing.assert_close(
            features, theirs.backbone(image[None])["res4"], atol=1e-5, rtol=1e-5
        )
        found = ours.detect(image[None], [(height, width)])[0]
        inputs = [{"image": image, "height": height, "width": width}]
        expected = theirs.inference(inputs, do_postprocess=False)[0]
    assert len(found.boxes) == len(expected) > 50
    torch.testing.assert_close(found.labels, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.masks, expected.pred_masks[:, 0], atol=1e-4, rtol=0)


def test_training_losses_agree(models) -> None:
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    ours, theirs = models
    ours.train()
    theirs.train()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    sizes = [(96, 160), (101, 147)]
    images = torch.zeros(2, 3, 101, 160)
    inputs = []
    targets = targets_of(sizes, seed=2)
    for i, ((height, width), target) in enumerate(zip(sizes, targets, strict=True)):
        images[i, :, :height, :width] = picture(height, width, seed=i)
        instances = Instances((height, width))
        instances.gt_boxes, instances.gt_classes = Boxes(target.boxes), target.labels
        instances.gt_masks = PolygonMasks(target.masks)
        inputs.append({"image": images[i, :, :height, :width], "instances": instances})
    losses = ours(images, sizes, targets, range(len(sizes)))
    with EventStorage():
        expected = theirs(inputs)
    names = {
        "rpn_cls": "loss_rpn_cls",
        "rpn_box": "loss_rpn_loc",
        "cls": "loss_cls",
        "box": "loss_box_reg",
        "mask": "loss_mask",
    }
    assert set(losses) == set(names)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[names[name]], rtol=1e-4, atol=1e-6)
    ours.load_state_dict(before)


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

    config = our_config(max_iter=300, steps=[200, 250], warmup_iters=40, lr=0.02)
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
    batches = [torch.randn(4, 3, 32, 32) * (1 + i) for i in range(5)]
    update_bn_stats(model, iter(batches), 5)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    model[1].reset_running_stats()
    precise_bn(model, ((lambda b=batch: model(b)) for batch in batches))
    for name in ("1.running_mean", "1.running_var"):
        # theirs is the biased variance within a batch, ours the unbiased one
        torch.testing.assert_close(model.state_dict()[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rule", ["11-point", "all-points"])
def test_voc_ap_agrees(tmp_path, rule: str) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval

    rng = np.random.default_rng(3)
    samples, lines, images, boxes, scores = [], [], [], [], []
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
        read = (truth - [1, 1, 0, 0]).tolist()
        samples.append(as_sample(tmp_path, i, 200, 200, read, [0] * 4, difficult.tolist()))
        for box in np.repeat(truth, 3, axis=0) + rng.normal(0, 3, (12, 4)):
            score = rng.random()
            images.append(i)
            boxes.append(box)
            scores.append(score)
            lines.append(" ".join(map(repr, [i, score, *box.tolist()])))
    (tmp_path / "cat.txt").write_text("\n".join(lines))
    (tmp_path / "list.txt").write_text("\n".join(map(str, range(12))))
    truths = [_truth(s, 0) for s in samples]
    positives = sum(int((~t.difficult).sum()) for t in truths)
    hits = judge(truths, np.array(images), np.array(boxes), np.array(scores))
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
