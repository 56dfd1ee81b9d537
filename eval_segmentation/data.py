"""Opening a segmentation data set: listed, and every pair of it checked before training."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from PIL import Image

from eval_segmentation.cityscapes import list_cityscapes
from eval_segmentation.config import SegmentConfig, check_config
from eval_segmentation.folder import list_folder
from eval_segmentation.pairs import IGNORE, Listing, Pair, SegmentationData, mask_values
from eval_segmentation.voc import list_voc
from siambench.data.images import FileFacts, dataset_name, decode, inspect_images
from siambench.errors import UserError, first_line
from siambench.files import digest_of
from siambench.problems import Problems
from siambench.progress import bar
from siambench.record import DatasetInfo

_ORIENTATION = 0x0112  # EXIF tag; values from 5 on swap width and height


def open_data(config: SegmentConfig) -> SegmentationData:
    """List the pairs of ``config.dataset`` and check every one of them.

    Raises:
        UserError: a list or folder is wrong; a field of ``config`` is out of its range; or, all of
            them in the details: an image or mask is missing or cannot be decoded (which
            ``skip_bad`` leaves out), a mask is not of its image's size, not a picture of indices, or
            holds a value that is no class, or (of a folder) a test image is a training image.
    """
    check_config(config)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if config.batch_size % processes:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes; choose a multiple"
        )
    listing = _listed(config)
    problems = Problems(config.skip_bad)
    checked, digests, facts = {}, {}, {}
    for split, pairs in listing.splits.items():
        good, rows, histogram, facts[split] = _check(pairs, listing, split, problems)
        checked[split] = good
        digests[split] = digest_of(rows)
        if good and not histogram[listing.table != IGNORE].sum():
            problems.file(str(listing.folder), f"no pixel of the {split} masks belongs to a class")
    if config.dataset == "folder":
        _refuse_shared(listing, facts, problems)
    problems.stop(str(listing.folder))
    for split, good in checked.items():
        if not good:
            raise UserError(
                f"not one of the {len(listing.splits[split])} {split} images can be used"
            )
    counts = {split: len(pairs) for split, pairs in checked.items()}
    name = dataset_name(listing.folder, counts)
    skipped = sum(len(pairs) - counts[split] for split, pairs in listing.splits.items())
    counts |= {"classes": len(listing.classes), "skipped": skipped}
    info = DatasetInfo(name, digest_of({"classes": listing.classes, **digests}), counts)
    return SegmentationData(
        listing.classes, listing.table, checked["train"], checked["val"], info, listing.palette
    )


def _listed(config: SegmentConfig) -> Listing:
    root = Path(config.data)
    if config.dataset == "cityscapes":
        return list_cityscapes(root)
    if config.dataset == "folder":
        return list_folder(config)
    return list_voc(root, aug=config.dataset == "voc12aug", sbd=config.sbd)


def _name(path: Path, folder: Path) -> str:
    """The path inside the folder; of SBD's files, which lie elsewhere, their own name."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _check(
    pairs: Sequence[Pair], listing: Listing, split: str, problems: Problems
) -> tuple[list[Pair], list[list[Any]], np.ndarray, FileFacts]:
    """The usable pairs with their sizes, what tells their contents, their masks' pixels by value (256,).

    And the facts of all images.
    """
    found, facts = inspect_images([pair.image for pair in pairs], problems.skip_bad)
    allowed = np.zeros(256, bool)
    allowed[[*listing.values, IGNORE]] = True
    good, rows, total = [], [], np.zeros(256, np.int64)
    with ThreadPoolExecutor(8) as pool, bar(f"checking {split} masks", len(pairs)) as progress:
        looked = pool.map(_look, pairs, [not text for text in found], chunksize=16)
        for number, (pair, text, mask) in enumerate(zip(pairs, found, looked, strict=True), 1):
            progress.advance()
            place = f"({split} pair {number} of {len(pairs)})"
            if not pair.image.is_file():
                problems.file(f"image {pair.image}", f"does not exist {place}")
            elif text:
                what = text.partition("; replace it")[0].removeprefix(f"image {pair.image} ")
                problems.image(f"image {pair.image}", what)
            unknown = np.flatnonzero((mask.histogram > 0) & ~allowed)
            where = f"mask {pair.mask}"
            if mask.missing:
                problems.file(where, f"does not exist {place}")
            elif mask.undecodable:
                problems.image(where, mask.undecodable)
            elif mask.wrong:
                problems.file(where, mask.wrong)
            elif len(unknown):
                problems.file(
                    where,
                    f"holds the value {unknown[0]} in {mask.histogram[unknown[0]]} pixels; the labels "
                    f"are 0 to {max(listing.values)} and {IGNORE} (ignored)",
                )
            elif not text:
                good.append(Pair(pair.image, pair.mask, mask.size))
                names = [_name(path, listing.folder) for path in (pair.image, pair.mask)]
                rows.append([*names, int(facts.mark[number - 1]), mask.content])
                total += mask.histogram
    return good, rows, total, facts


@dataclass(frozen=True)
class _Mask:
    """What a look at a mask found, or what is wrong.

    Attributes:
        size: (width, height).
        histogram: (256,), pixels by value.
        content: digest of the values.
    """

    size: tuple[int, int] = (0, 0)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    content: str = ""
    missing: bool = False
    undecodable: str = ""
    wrong: str = ""


def _look(pair: Pair, readable: bool) -> _Mask:
    """Look at the mask of an image, whose own size is compared if it is ``readable``."""
    if not pair.mask.is_file():
        return _Mask(missing=True)
    try:
        values = mask_values(pair.mask)
        mode = _mode(pair.mask)
    except Exception as error:  # whatever a damaged PNG or .mat raises
        return _Mask(undecodable=f"cannot be decoded ({first_line(error)})")
    if mode or values.ndim != 2 or values.dtype != np.uint8:
        return _Mask(
            wrong=f"has mode {mode or values.dtype}; a mask is an 8-bit picture of class indices "
            "(palette or grey), not of colours"
        )
    size = (values.shape[1], values.shape[0])
    if readable and (of_image := _upright_size(pair.image)) not in (size, None):
        width, height = of_image
        return _Mask(
            wrong=f"is {size[0]}×{size[1]} but image {pair.image} is {width}×{height}; they must be "
            "of one size"
        )
    values = np.ascontiguousarray(values)
    content = blake2b(values, digest_size=16).hexdigest()
    return _Mask(size, np.bincount(values.ravel(), minlength=256), content)


def _mode(path: Path) -> str:
    """The mode of a picture that is none of indices; ``""`` for one that is, and for a .mat file."""
    if path.suffix == ".mat":
        return ""
    with Image.open(path) as mask:
        return "" if mask.mode in ("P", "L") else mask.mode


def _upright_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of an image as it is decoded; None if its header cannot be read."""
    try:
        with Image.open(path) as image:  # reads the header only
            if image.format == "JPEG":
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
                return image.size[::-1] if turned else image.size
            if image.format == "PNG" and "exif" not in image.info:
                return image.size  # one behind its pixels is seen by read_pair
        return decode(path).size
    except (UserError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _refuse_shared(listing: Listing, facts: dict[str, FileFacts], problems: Problems) -> None:
    """Note the test images that are training images too, under whatever name: equal bytes."""
    trained = dict(zip(facts["train"].mark.tolist(), listing.train, strict=True))
    for mark, pair in zip(facts["val"].mark.tolist(), listing.val, strict=True):
        twin = trained.get(mark)
        if twin and mark and twin.image.read_bytes() == pair.image.read_bytes():
            problems.file(f"image {pair.image}", f"is the training image {twin.image} too")
