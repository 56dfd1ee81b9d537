"""Write golden.safetensors: what the real mmsegmentation computes for the cases of golden_cases.py.

Usage, with mmsegmentation and mmcv-lite: PYTHONPATH=. python tests/eval_segmentation/make_golden.py
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from golden_cases import (
    CASES,
    CLASSES,
    CROPS,
    DISTORTIONS,
    EDGES,
    MIN_LR,
    PATH,
    POWER,
    RATIOS,
    RESIZED,
    SGD,
    SIZES,
    STEPS,
    Script,
    batch,
    fingerprint,
    labels,
    normalised,
    picture,
    weights,
)
from safetensors.torch import save_file
from torch import Tensor

from eval_segmentation.config import SegmentConfig
from siambench.backbone import sort_header


class Absent(ModuleType):
    """Stands for mmcv's compiled operators, which FCNs do not use and mmcv-lite lacks."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


sys.modules |= {name: Absent(name) for name in ("mmcv.ops", "mmcv._ext")}
import mmcv
import mmengine
import mmseg
from mmcv.transforms import RandomResize
from mmengine.config import Config, ConfigDict
from mmengine.optim import PolyLR
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, SegTTAModel
from mmseg.structures import SegDataSample

transforms = importlib.import_module("mmseg.datasets.transforms.transforms")


def network(case: dict[str, Any]) -> EncoderDecoder:
    """mmsegmentation's network of a case, with our weights."""
    config = SegmentConfig(backbone="", data="", **case)
    norm = {"type": "BN"}
    of_heads = {
        "num_classes": CLASSES,
        "norm_cfg": norm,
        "dropout_ratio": config.dropout,
        "align_corners": config.align_corners,
    }

    def loss(weight: float) -> dict[str, Any]:
        labelled = config.loss_over == "labelled"
        return {"type": "CrossEntropyLoss", "loss_weight": weight, "avg_non_ignore": labelled}

    eight = config.output_stride == 8
    model = EncoderDecoder(
        backbone={
            "type": "ResNet",
            "depth": 50,
            "base_channels": 8,
            "strides": (1, 2, 1, 1) if eight else (1, 2, 2, 1),
            "dilations": (1, 1, 2, 4) if eight else (1, 1, 1, 2),
            "contract_dilation": config.contract_dilation,
            "norm_cfg": norm,
        },
        decode_head={
            "type": "FCNHead",
            "in_channels": 256,
            "in_index": 3,
            "channels": config.head_channels,
            "num_convs": config.head_convs,
            "dilation": config.head_dilation,
            "concat_input": config.head_concat,
            "loss_decode": loss(1.0),
            **of_heads,
        },
        auxiliary_head={
            "type": "FCNHead",
            "in_channels": 128,
            "in_index": 2,
            "channels": config.aux_channels,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": loss(config.aux_weight),
            **of_heads,
        }
        if config.aux_weight
        else None,
        test_cfg=ConfigDict(
            mode=config.inference,
            crop_size=(config.crop, config.crop),
            stride=(config.slide_stride, config.slide_stride),
        ),
    )
    model.load_state_dict(weights({n: tuple(t.shape) for n, t in model.state_dict().items()}))
    return model


def sample(size: tuple[int, int], original: tuple[int, int], flip: bool = False) -> SegDataSample:
    """What mmsegmentation wants to know of an image: (height, width) now and before."""
    meta = {"img_shape": size, "ori_shape": original, "img_path": ""}
    return SegDataSample(metainfo=meta | {"flip": flip, "flip_direction": "horizontal"})


def of_training(case: dict[str, Any]) -> dict[str, Tensor]:
    """Losses, gradients and what STEPS steps of SGD change, on the batch."""
    model = network(case).train()
    images, target = batch()
    samples = [sample((48, 64), (48, 64)) for _ in images]
    for one, mask in zip(samples, target, strict=True):
        one.gt_sem_seg = PixelData(data=mask[None])
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    schedule = PolyLR(optimizer, MIN_LR, POWER, begin=0, end=STEPS, by_epoch=False)
    before = {n: t.clone() for n, t in model.state_dict().items() if t.is_floating_point()}
    found: dict[str, Tensor] = {}
    rates, losses = [], []
    for step in range(STEPS):
        told = {n: v for n, v in model.loss(images, samples).items() if "loss" in n}
        losses.append(torch.stack(list(told.values())).detach())
        optimizer.zero_grad()
        torch.stack(list(told.values())).sum().backward()
        if step == 0:
            found["gradients"] = fingerprint({n: p.grad for n, p in model.named_parameters()})
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    state = model.state_dict()
    found["changes"] = fingerprint({name: state[name] - old for name, old in before.items()})
    return found | {"losses": torch.stack(losses), "rates": torch.tensor(rates)}


@torch.inference_mode()
def of_testing(case: dict[str, Any]) -> dict[str, Tensor]:
    """Logits at the output stride and of the picture; its labels, also with flips and scales."""
    model = network(case).eval()
    pixels = picture(44, 30)
    original = (30, 44)

    def logits(ratio: float, flip: bool) -> SegDataSample:
        scaled = mmcv.imrescale(pixels, tuple(int(e * ratio) for e in EDGES))
        image = normalised(mmcv.imflip(scaled) if flip else scaled)
        return model.predict(image, [sample(scaled.shape[:2], original, flip)])[0]

    plain = logits(1.0, False)
    several = [logits(ratio, flip) for ratio in (0.75, 1.0, 1.5) for flip in (False, True)]
    merged = SegTTAModel.merge_preds(type("Self", (), {"module": model})(), [several])[0]
    scaled = normalised(mmcv.imrescale(pixels, EDGES))
    return {
        "strided": model._forward(scaled),
        "logits": plain.seg_logits.data,
        "labels": plain.pred_sem_seg.data[0].to(torch.uint8),
        "merged": merged.pred_sem_seg.data.to(torch.uint8),
    }


def of_pictures() -> dict[str, Tensor]:
    """Sizes, resized pictures and masks, distorted pictures, windows; colours are turned to RGB."""
    found: dict[str, Tensor] = {}
    resize = RandomResize(scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
    sizes = []
    for width, height in SIZES:
        for ratio in RATIOS:
            drawn = (ratio - 0.5) / 1.5
            with patch("numpy.random.random_sample", return_value=drawn):
                done = resize({"img": np.zeros((height, width, 3), np.uint8)})
            sizes.append(done["img"].shape[1::-1])
    found["sizes"] = torch.tensor(sizes)
    pixels, mask = picture(44, 30)[..., ::-1], labels(44, 30)
    for number, size in enumerate(RESIZED):
        image = mmcv.imresize(pixels, size)
        found[f"resized{number}"] = torch.from_numpy(image[..., ::-1].copy())
        mask_now = mmcv.imresize(mask, size, interpolation="nearest")
        found[f"mask{number}"] = torch.from_numpy(mask_now)
    for number, draws in enumerate(DISTORTIONS):
        script = Script(draws)
        with patch.object(transforms, "random", script):
            image = PhotoMetricDistortion()({"img": pixels.copy()})["img"]
        assert not script.values
        found[f"distorted{number}"] = torch.from_numpy(image[..., ::-1].copy())
    mask, windows = labels(60, 44), []
    for crop, ratio, draws in CROPS:
        script = Script(list(draws))
        cropping = RandomCrop((crop, crop), ratio)  # held: its method refers to it weakly
        with patch("numpy.random.randint", script.integers):
            told = {"img": np.zeros((44, 60, 3)), "gt_seg_map": mask}
            top, _, left, _ = cropping.crop_bbox(told)
        windows.append([top, left, len(script.values)])
    return found | {"windows": torch.tensor(windows)}


def of_metrics() -> dict[str, Tensor]:
    """IoUMetric's numbers, in percent to two decimals."""
    metric = IoUMetric(prefix="x")
    metric.dataset_meta = {"classes": [str(c) for c in range(CLASSES)]}
    truth, guess = labels(60, 44, 5), labels(60, 44, 6)
    truth[truth == 3] = 0
    guess[(guess == 255) | (guess == 3)] = 0
    one = {
        "pred_sem_seg": {"data": torch.from_numpy(guess)[None]},
        "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
    }
    metric.process({}, [one])
    areas = metric.results[0]
    told = metric.compute_metrics(metric.results)
    per_class = metric.total_area_to_metrics(*areas, metrics=["mIoU"])["IoU"]
    summary = [told[name] for name in ("mIoU", "aAcc", "mAcc")]
    return {"summary": torch.tensor(summary), "IoU": torch.as_tensor(per_class) * 100}


def presets() -> dict[str, dict[str, Any]]:
    """The numbers of mmsegmentation's own configurations that mmselfsup's benchmarks are."""
    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "fcn"
    found = {}
    for name, file, gpus in (
        ("voc12aug-fcn-20k", "fcn_r50-d8_4xb4-20k_voc12aug-512x512.py", 4),
        ("cityscapes-fcn-40k", "fcn_r50-d8_4xb2-40k_cityscapes-769x769.py", 4),
    ):
        config = Config.fromfile(folder / file)
        head, aux, test = (
            config.model.decode_head,
            config.model.auxiliary_head,
            config.model.test_cfg,
        )
        steps = {step.type: step for step in config.train_pipeline}
        resize, poly = steps["RandomResize"], config.param_scheduler[0]
        found[name] = {
            "contract_dilation": config.model.backbone.contract_dilation,
            "head_channels": head.channels,
            "head_convs": head.num_convs,
            "head_concat": head.concat_input,
            "aux_channels": aux.channels,
            "aux_weight": aux.loss_decode.loss_weight,
            "dropout": head.dropout_ratio,
            "align_corners": head.align_corners,
            "long_edge": resize.scale[0],
            "short_edge": resize.scale[1],
            "ratio_min": resize.ratio_range[0],
            "ratio_max": resize.ratio_range[1],
            "crop": steps["RandomCrop"].crop_size[0],
            "cat_max_ratio": steps["RandomCrop"].cat_max_ratio,
            "flip": steps["RandomFlip"].prob == 0.5,
            "distort": "PhotoMetricDistortion" in steps,
            "batch_size": gpus * config.train_dataloader.batch_size,
            "iterations": config.train_cfg.max_iters,
            "lr": config.optimizer.lr,
            "momentum": config.optimizer.momentum,
            "weight_decay": config.optimizer.weight_decay,
            "poly_power": poly.power,
            "min_lr": poly.eta_min,
            "inference": test.mode,
        }
        if test.mode == "slide":
            found[name]["slide_stride"] = test.stride[0]
    return found


def main() -> None:
    tensors = of_pictures() | of_metrics()
    names = {}
    for name, case in CASES.items():
        found = of_training(case) | of_testing(case)
        tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in found.items()}
        names[name] = {n: list(t.shape) for n, t in network(case).state_dict().items()}
    metadata = {
        "mmsegmentation": mmseg.__version__,
        "mmengine": mmengine.__version__,
        "mmcv": mmcv.__version__,
        "torch": torch.__version__,
        "presets": json.dumps(presets(), separators=(",", ":")),
        "names": json.dumps(names, separators=(",", ":")),
    }
    save_file(tensors, PATH, metadata=metadata)
    sort_header(PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes, mmsegmentation {mmseg.__version__}")


if __name__ == "__main__":
    main()
