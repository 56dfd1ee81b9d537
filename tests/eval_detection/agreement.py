"""One network in both libraries: its weights, its input, and what is compared of it.

`ours_of` and `theirs_of` return the same tensors under the same names; the golden file holds those of
the real detectron2. All numbers come from numpy's RandomState, whose stream is frozen (NEP 19).
"""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.boxes import nonempty
from eval_detection.torchvision_engine.detector import Detector
from eval_detection.torchvision_engine.names import to_detectron2
from eval_detection.torchvision_engine.network import build_detector
from eval_detection.torchvision_engine.rpn import Target
from siambench.resnet import build_resnet, parse_arch

CLASSES = 5
MASKED = 2  # boxes of an image of which mask logits are compared
MASK_STEP = 20  # detections for one whose mask is compared
LOSSES = {
    "rpn_cls": "loss_rpn_cls",
    "rpn_box": "loss_rpn_loc",
    "cls": "loss_cls",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}
SIZES = {"c4": [16, 32, 64], "fpn": [8, 16, 32, 48, 64]}
SCALES = {  # of weights of what is compared, so that it neither vanishes nor saturates
    "cls_score": 5,
    "bbox_pred": 0.5,
    "predictor": 2,
    "objectness_logits": 2,
    "anchor_deltas": 0.3,
}
GOLDEN = {  # small enough for a file; images of two sizes, one of them padded
    "c4": ("resnet50-w8", {"network": "c4", "mask": True, "pooler_resolution": 6}),
    "fpn": (
        "resnet50-w8",
        {
            "network": "fpn",
            "mask": True,
            "pooler_resolution": 3,
            "rpn_post_nms_train": 30,
            "detections_per_image": 40,
        },
    ),
}
GOLDEN_SIZES = [(64, 90), (50, 61)]


def config_of(network: str = "c4", **changes) -> DetectConfig:
    """Every anchor and every proposal is drawn, so that no chance is left in the losses."""
    fields = {
        "network": network,
        "anchor_sizes": SIZES[network],
        "rpn_batch_per_image": 12000,
        "rpn_pre_nms_train": 150,
        "rpn_pre_nms_test": 200,
        "rpn_post_nms_train": 60,
        "rpn_post_nms_test": 100,
        "rois_per_image": 400,
    }
    return DetectConfig(backbone="", data="", **{**fields, **changes})


def our_model(arch: str, config: DetectConfig) -> Detector:
    model = build_detector(build_resnet(arch), CLASSES, config)
    model.load_state_dict({name: made(name, t) for name, t in model.state_dict().items()})
    return model


def made(name: str, tensor: Tensor) -> Tensor:
    """Numbers for one tensor: such that signals keep their size, and hundreds of things are found."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(tensor)
    random = np.random.RandomState(crc32(name.encode()))
    values = random.standard_normal(tuple(tensor.shape))
    if name.endswith("running_var"):
        values = 1 + 0.2 * np.tanh(values)
    elif part := next((part for part in SCALES if part in name and tensor.dim() > 1), None):
        values *= SCALES[part] / np.sqrt(tensor[0].numel())
    elif tensor.dim() > 1:
        values *= np.sqrt(2 / tensor[0].numel())
    elif name.endswith("weight"):  # of a batch norm
        values = 0.6 + 0.1 * values
    else:
        values *= 0.1
    return torch.from_numpy(np.asarray(values, np.float32))


def their_model(arch: str, config: DetectConfig, *, initial: bool = False) -> nn.Module:
    """detectron2's network by its own builders, with the weights of ours or the initial ones."""
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
    spec, planes = parse_arch(arch)
    model.DEVICE, model.MASK_ON = "cpu", config.mask
    model.PIXEL_MEAN, model.PIXEL_STD = [0.0] * 3, [1.0] * 3
    model.BACKBONE.FREEZE_AT = config.freeze_at
    resnets = model.RESNETS
    resnets.DEPTH = int(arch.removeprefix("resnet").partition("-")[0])
    resnets.NORM, resnets.STRIDE_IN_1X1 = "BN", False
    resnets.WIDTH_PER_GROUP, resnets.RES2_OUT_CHANNELS = planes, planes * spec.block.expansion
    model.ROI_HEADS.NUM_CLASSES = CLASSES
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = config.rois_per_image
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = config.pooler_resolution
    model.RPN.BATCH_SIZE_PER_IMAGE = config.rpn_batch_per_image
    model.RPN.PRE_NMS_TOPK_TRAIN = config.rpn_pre_nms_train
    model.RPN.PRE_NMS_TOPK_TEST = config.rpn_pre_nms_test
    model.RPN.POST_NMS_TOPK_TRAIN = config.rpn_post_nms_train
    model.RPN.POST_NMS_TOPK_TEST = config.rpn_post_nms_test
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections_per_image
    if config.network == "fpn":
        stages = ["res2", "res3", "res4", "res5"]
        model.BACKBONE.NAME, resnets.OUT_FEATURES = "build_resnet_fpn_backbone", stages
        model.FPN.IN_FEATURES, model.FPN.NORM = stages, "BN" if config.extra_norm else ""
        model.ANCHOR_GENERATOR.SIZES = [[size] for size in config.anchor_sizes]
        model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        model.ROI_HEADS.NAME, model.ROI_HEADS.IN_FEATURES = (
            "StandardROIHeads",
            model.RPN.IN_FEATURES[:4],
        )
        model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
        model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.POOLER_RESOLUTION = 4, 14
    else:
        model.ANCHOR_GENERATOR.SIZES = [config.anchor_sizes]
        model.ROI_HEADS.NAME = "ExtraNorm" if config.extra_norm else "Res5ROIHeads"
    theirs = build_model(cfg)
    if initial:
        return theirs
    state = to_detectron2(our_model(arch, config).state_dict())
    missing = set(theirs.state_dict()) ^ set(state)  # ours does not count a frozen norm's batches
    assert all(n.endswith("num_batches_tracked") for n in missing), sorted(missing)
    assert not missing or config.freeze_at
    theirs.load_state_dict(state, strict=False)
    return theirs


def picture(height: int, width: int, seed: int) -> Tensor:
    coarse = np.random.RandomState(seed).standard_normal((1, 3, height // 8, width // 8))
    return nn.functional.interpolate(
        torch.from_numpy(coarse.astype(np.float32)), (height, width), mode="bilinear"
    )[0]


def targets_of(sizes, seed: int) -> list[Target]:
    """Three objects an image, with triangles as masks."""
    random = np.random.RandomState(seed)
    targets = []
    for height, width in sizes:
        side = min(height, width) * 0.6
        corner = random.uniform(0, [width - side, height - side], (3, 2))
        boxes = np.concatenate((corner, corner + random.uniform(15, side, (3, 2))), axis=1)
        masks = [[np.array([x0, y0, x1, y0, (x0 + x1) / 2, y1])] for x0, y0, x1, y1 in boxes]
        labels = torch.from_numpy(random.randint(0, CLASSES, 3))
        targets.append(Target(torch.from_numpy(boxes).float(), labels, masks))
    return targets


def batch_of(sizes, divisible: int) -> Tensor:
    """Pictures of ``sizes`` padded as the network wants them."""
    sides = [-(-max(side) // divisible) * divisible for side in zip(*sizes, strict=True)]
    images = torch.zeros(len(sizes), 3, *sides)
    for i, (height, width) in enumerate(sizes):
        images[i, :, :height, :width] = picture(height, width, seed=i)
    return images


def ours_of(model: Detector, sizes, proposals: list[Tensor]) -> dict[str, Tensor]:
    """What is compared; heads are run on detectron2's ``proposals``."""
    images = batch_of(sizes, model.divisible)
    model.eval()
    with torch.no_grad():
        maps = model.body(images)
        dense = model.rpn(maps)
        found = {f"map{i}": out for i, out in enumerate(maps)}
        found |= {"rpn_logits": dense.logits, "rpn_deltas": dense.deltas}
        found |= {f"proposals{i}": b for i, b in enumerate(model.rpn.proposals(dense, sizes))}
        logits, deltas = model._predict(model.head(maps, proposals)[0])
        found |= {"box_logits": logits, "box_deltas": deltas.flatten(1)}
        if model.config.mask:
            found["mask_logits"] = model.head.masks(maps, [p[:MASKED] for p in proposals], None)
        for i, one in enumerate(model.detect(images, sizes)):
            found |= {f"boxes{i}": one.boxes, f"scores{i}": one.scores, f"labels{i}": one.labels}
            if one.masks is not None:
                found[f"masks{i}"] = one.masks
    losses = model.train()(images, sizes, targets_of(sizes, seed=2), range(len(sizes)))
    return found | {f"loss_{name}": value for name, value in losses.items()}


def theirs_of(model: nn.Module, config: DetectConfig, sizes) -> dict[str, Tensor]:
    """The same, of detectron2's network."""
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    inputs = []
    for i, ((height, width), target) in enumerate(zip(sizes, targets_of(sizes, 2), strict=True)):
        instances = Instances((height, width))
        instances.gt_boxes, instances.gt_classes = Boxes(target.boxes), target.labels
        if config.mask:
            instances.gt_masks = PolygonMasks(target.masks)
        image = picture(height, width, seed=i)
        inputs.append({"image": image, "height": height, "width": width, "instances": instances})
    model.eval()
    heads, rpn = model.roi_heads, model.proposal_generator
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        maps = model.backbone(images.tensor)
        found = {f"map{i}": out for i, out in enumerate(maps.values())}
        logits, deltas = rpn.rpn_head([maps[name] for name in rpn.in_features])
        found["rpn_logits"] = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in logits], 1)
        rows = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas]
        found["rpn_deltas"] = torch.cat(rows, 1)
        boxes = [one.proposal_boxes for one in rpn(images, maps)[0]]
        few = [Boxes(b.tensor[:MASKED]) for b in boxes]
        found |= {f"proposals{i}": b.tensor for i, b in enumerate(boxes)}
        cut = [maps[name] for name in heads.in_features]
        if config.network == "fpn":
            vectors = heads.box_head(heads.box_pooler(cut, boxes))
            masked = heads.mask_pooler(cut, few) if config.mask else None
        else:
            vectors = heads._shared_roi_transform(cut, boxes).mean(dim=(2, 3))
            masked = heads._shared_roi_transform(cut, few)
        found["box_logits"], found["box_deltas"] = heads.box_predictor(vectors)
        if config.mask:
            found["mask_logits"] = heads.mask_head.layers(masked)
        for i, one in enumerate(model.inference(inputs, do_postprocess=False)):
            found |= {f"boxes{i}": one.pred_boxes.tensor, f"scores{i}": one.scores}
            found[f"labels{i}"] = one.pred_classes
            if config.mask:
                found[f"masks{i}"] = one.pred_masks[::MASK_STEP, 0]
    with EventStorage():
        losses = model.train()(inputs)
    return found | {f"loss_{o}": losses[t] for o, t in LOSSES.items() if t in losses}


def packed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part that the golden file has room for: 4 channels of every map, or of the only one 32."""
    channels = 32 if "map1" not in found else 4
    return {
        name: (t[:, :: t.shape[1] // channels] if name.startswith("map") else t)
        .detach()
        .contiguous()
        for name, t in found.items()
    }


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], images: int) -> None:
    """Features to 1e-5, outputs to rounding, boxes by IoU > 0.999, scores and losses to 1e-3.

    ``expected`` may hold every so manieth channel of a map only, and has one mask in `MASK_STEP`.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("map"):
            ours = found[name][:, :: found[name].shape[1] // value.shape[1]]
            scale = max(1, float(value.abs().max()))
            torch.testing.assert_close(ours, value, atol=1e-5 * scale, rtol=1e-5)
        elif name.endswith(("_logits", "_deltas")):
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
        elif name.startswith("loss"):
            torch.testing.assert_close(found[name], value, atol=0, rtol=1e-3)
    for i in range(images):
        ours, theirs = (side[f"proposals{i}"] for side in (found, expected))
        assert len(ours) == len(theirs) > 20
        assert box_iou(theirs, ours).max(dim=1).values.min() > 0.999
        ours, theirs = (side[f"boxes{i}"] for side in (found, expected))
        assert len(ours) == len(theirs) > 20
        assert nonempty(theirs).all()  # the IoU of others is not defined
        same = expected[f"labels{i}"][:, None] == found[f"labels{i}"]
        iou, match = (box_iou(theirs, ours) * same).max(dim=1)
        assert iou.min() > 0.999
        difference = found[f"scores{i}"][match] - expected[f"scores{i}"]
        assert difference.abs().max() < 1e-3
        if f"masks{i}" in expected:
            masks = found[f"masks{i}"][match[::MASK_STEP]]
            torch.testing.assert_close(masks, expected[f"masks{i}"], atol=1e-3, rtol=0)
