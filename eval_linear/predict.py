"""Class and score of images, by a linear classifier that the linear probe saved."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from eval_linear import VERBS
from eval_linear.config import PredictConfig
from eval_linear.head_file import read_head
from siambench.backbone import finite, weights_digest
from siambench.checkpoints.source import Source, load_backbone
from siambench.cli import run_verb
from siambench.data.images import EXTENSIONS, check_images, decode
from siambench.device import pick_device, share_cores
from siambench.errors import UserError, printable
from siambench.features import LayerFeatures, Transform, center_crop_transform, extract
from siambench.files import existing
from siambench.progress import say

Picture = str | Path | Image.Image | Tensor


class Prediction(TypedDict):
    """One image's result; the ``pred_`` names are those of mmpretrain's ``inference_model``.

    Keys:
        path: of the image; ``""`` where it came from memory.
        pred_label, pred_class, pred_score: number, name and probability of the likeliest class: softmax,
            or sigmoid for a head that was trained on images with several labels.
        pred_scores: probabilities of all classes, float32 (C,).
        topk: the likeliest classes, best first, as ``{"label": ..., "class": ..., "score": ...}``.
    """

    path: str
    pred_label: int
    pred_class: str
    pred_score: float
    pred_scores: np.ndarray
    topk: list[dict[str, Any]]


class Classifier:
    """A saved head on its backbone: images in, classes and scores out. Opened once, called often.

    Args:
        head: a ``head.safetensors``.
        backbone: anything :func:`siambench.load_backbone` takes, with the weights that the head was
            trained on; by default where they were then.
        layer: which of the head's; by default avgpool if it is there, else the last.
        topk: likeliest classes per image in ``topk``; all of them where there are fewer.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Attributes:
        classes: names; labels index into them.
        layer: what the head looks at.
        device: where it runs.

    Example:
        >>> classifier = Classifier("head.safetensors")
        >>> (found,) = classifier(["cat.jpg"])
        >>> found["pred_class"], found["pred_score"]
        ('tabby', 0.93)

    Raises:
        UserError: a setting, the head or the backbone is wrong, or they do not belong together.
    """

    def __init__(
        self,
        head: str | Path,
        backbone: Source = "",
        *,
        layer: str = "",
        topk: int = 5,
        device: str = "auto",
    ) -> None:
        if topk < 1:
            raise UserError(f"topk must be at least 1, not {topk}")
        self.device = pick_device(device)
        self._head = found = read_head(head, layer)
        self.classes, self.layer = found.classes, found.layer
        self._topk = min(topk, len(self.classes))
        source = found.about.get("backbone_source", "") if backbone == "" else backbone
        if source == "":
            raise UserError(f"{head} does not say where its backbone is; name it with --backbone")
        try:
            opened = load_backbone(source)
        except UserError as error:
            if backbone != "":
                raise
            raise UserError(f"{error} ({head} was trained on it; or use --backbone)") from None
        name, wanted = (found.about.get(key, "?") for key in ("backbone", "backbone_sha256"))
        if opened.sha256 != wanted:
            digest = weights_digest(opened.resnet.state_dict())
            if digest != found.about.get("weights_sha256"):
                raise UserError(
                    f"{opened.name} (SHA-256 {opened.sha256[:12]}) is not the backbone that {head} "
                    f"was trained on, {name} ({wanted[:12]}); name that one with --backbone"
                )
        self._mean, self._std = found.mean or opened.meta.mean, found.std or opened.meta.std
        precision = found.about.get("precision", "float32")
        self._encoder = LayerFeatures(opened.to(self.device), [found.layer], found.crop, precision)
        if self._encoder.dims != [found.weight.shape[1]]:
            raise UserError(
                f"{head} is damaged: its {found.layer} takes {found.weight.shape[1]} features, the "
                f"backbone gives {self._encoder.dims[0]}; copy it again"
            )
        self._weight, self._bias = found.weight.to(self.device), found.bias.to(self.device)

    def __call__(
        self, images: Sequence[Picture], *, batch_size: int = 256, workers: int = 0, title: str = ""
    ) -> list[Prediction]:
        """Classify images, prepared as the probe's test images were.

        Args:
            images: paths, PIL images or uint8 RGB tensors (3, H, W), of any sizes.
            batch_size: images per forward pass.
            workers: loader processes.
            title: of the progress bar; empty for none.

        Raises:
            UserError: there is none, or one is not an image.
        """
        if isinstance(images, str | Path | Image.Image) or not len(images):
            raise UserError("give a list of at least one image")
        logits = torch.from_numpy(
            extract(
                lambda x: F.linear(self._encoder(x), self._weight, self._bias),
                _Prepared(images, center_crop_transform(self._head.resize, self._head.crop)),
                mean=self._mean,
                std=self._std,
                device=self.device,
                batch_size=batch_size,
                workers=workers,
                title=title,
            )
        )
        if not finite(logits):
            raise UserError("the head's scores are not finite; train it again")
        # Ranked by logits: far from the best, probabilities round to equal zeros.
        best = logits.topk(self._topk, dim=1).indices.tolist()
        several = self._head.about.get("scores") == "sigmoid"  # labels per image
        scores = (logits.sigmoid() if several else logits.softmax(1)).numpy()
        return [
            self._prediction(str(image) if isinstance(image, str | Path) else "", row, labels)
            for image, row, labels in zip(images, scores, best, strict=True)
        ]

    def _prediction(self, path: str, scores: np.ndarray, best: list[int]) -> Prediction:
        topk = [{"label": y, "class": self.classes[y], "score": float(scores[y])} for y in best]
        return Prediction(
            path=path,
            pred_label=best[0],
            pred_class=self.classes[best[0]],
            pred_score=float(scores[best[0]]),
            pred_scores=scores,
            topk=topk,
        )


class _Prepared(Dataset[Tensor]):
    """Pictures of any kind as the transform's tensors."""

    def __init__(self, pictures: Sequence[Picture], transform: Transform) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(_rgb(self.pictures[index]))


def _rgb(picture: Picture) -> Image.Image:
    """As a file is decoded: upright and RGB."""
    if isinstance(picture, str | Path):
        return decode(picture)
    if isinstance(picture, Tensor):
        shape = tuple(picture.shape)
        if picture.dtype != torch.uint8 or len(shape) != 3 or shape[0] != 3 or 0 in shape:
            raise UserError(
                f"a tensor must be a uint8 RGB image (3, H, W), not {picture.dtype} {shape}"
            )
        return Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    if picture.mode.startswith(("I", "F")):
        raise UserError(
            f"a PIL image of mode {picture.mode} has no range; give its path, or 8 bits"
        )
    return ImageOps.exif_transpose(picture).convert("RGB")


def find_images(named: Sequence[str], skip_bad: bool = False) -> list[Path]:
    """The images among files and, sorted, in folders and theirs; all checked.

    Raises:
        UserError: one is not there, a folder has none, or one cannot be decoded.
    """
    paths: list[Path] = []
    for name in named:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()
            )
            if not inside:
                raise UserError(f"folder {path} has no images ({', '.join(sorted(EXTENSIONS))})")
            paths += inside
        else:
            paths.append(existing(path, "image", hint="name images or folders of them"))
    good = [p for p, ok in zip(paths, check_images(paths, skip_bad), strict=True) if ok]
    if not good:
        raise UserError(f"not one of {len(paths)} images can be read; name images or folders")
    if len(good) < len(paths):
        say(f"{len(paths) - len(good)} of {len(paths)} images cannot be decoded and are left out")
    return good


def run(config: PredictConfig) -> list[dict[str, Any]]:
    """The ``predict`` verb: print path, class and score; return the same and the top k, as JSON has it."""
    classifier = Classifier(
        config.head,
        config.backbone,
        layer=config.layer,
        topk=config.topk,
        device=config.device,
    )
    paths = find_images(config.images, config.skip_bad)
    few = config.workers < 0 and len(paths) < 64  # sooner decoded here than a process is started
    workers = 0 if few else share_cores(config.workers, classifier.device)
    found = classifier(paths, workers=workers, title="" if few else "predict")
    for one in found:
        path, name = (printable(one[key], 4096) for key in ("path", "pred_class"))
        print(f"{path}  {name}  {one['pred_score']:.4f}")
    return [{key: value for key, value in one.items() if key != "pred_scores"} for one in found]


if __name__ == "__main__":
    sys.exit(run_verb(VERBS["predict"]))
