"""Any folder of images and masks: one folder a split, equal names, and a file that names the classes."""

from collections import Counter
from pathlib import Path

from eval_segmentation.config import SegmentConfig
from eval_segmentation.pairs import IGNORE, Listing, Pair, voc_colours
from siambench.data.images import EXTENSIONS
from siambench.errors import UserError
from siambench.files import existing

MASKS = (".png", ".tif", ".tiff", ".bmp")  # without loss, so that values stay what they are


def list_folder(config: SegmentConfig) -> Listing:
    """DATA/images/SPLIT/**/NAME.jpg with DATA/masks/SPLIT/**/NAME.png, classes from DATA/classes.txt.

    Line i of classes.txt names value i. Values in ``ignored_values`` become ``IGNORE`` and the rest
    is numbered anew.

    Raises:
        UserError: a folder or classes.txt is absent or empty, or makes no sense.
    """
    root = Path(config.data)
    names = _class_names(root / "classes.txt")
    if unknown := sorted(set(config.ignored_values) - set(range(len(names)))):
        raise UserError(
            f"--ignored_values holds {unknown[0]}, but classes.txt names 0 to {len(names) - 1}; 255 is "
            "always ignored"
        )
    used = [value for value in range(len(names)) if value not in config.ignored_values]
    if len(used) < 2:
        raise UserError(f"{root / 'classes.txt'} leaves {len(used)} classes; there must be two")
    labels = {value: label for label, value in enumerate(used)}
    return Listing(
        folder=root,
        classes=[names[value] for value in used],
        values=range(len(names)),
        labels=[labels.get(value, IGNORE) for value in range(len(names))],
        train=_pairs(root, config, config.train_split),
        val=_pairs(root, config, config.val_split),
        palette=voc_colours(len(used)),
    )


def _class_names(path: Path) -> list[str]:
    hint = "write one class name a line: the first names value 0 of the masks, the second value 1"
    try:
        text = existing(path, "list of classes", hint=hint).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it as that") from None
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(names) or not names:
        raise UserError(f"{path}, line {names.index('') + 1 if names else 1} is empty; {hint}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} names {twice[0]!r} twice; classes must differ")
    if len(names) > IGNORE:
        raise UserError(f"{path} names {len(names)} classes; 8-bit masks hold 255 and the ignored")
    return names


def _pairs(root: Path, config: SegmentConfig, split: str) -> list[Pair]:
    hint = f"expected DATA/{config.image_folder}/SPLIT and DATA/{config.mask_folder}/SPLIT"
    images = existing(root / config.image_folder / split, "images", folder=True, hint=hint)
    masks = existing(root / config.mask_folder / split, "masks", folder=True, hint=hint)
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise UserError(f"{images} has no images ({', '.join(sorted(EXTENSIONS))})")
    there = {
        p.with_suffix("").relative_to(masks): p
        for p in sorted(masks.rglob("*"), reverse=True)
        if p.suffix.lower() in MASKS
    }
    stems = [p.with_suffix("").relative_to(images) for p in found]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise UserError(
            f"{images} holds {twice[0]} with several endings; one mask cannot be theirs all"
        )
    return [
        Pair(path, there.get(stem, masks / f"{stem}.png"))
        for path, stem in zip(found, stems, strict=True)
    ]
