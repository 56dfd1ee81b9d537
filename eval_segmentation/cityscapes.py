"""Cityscapes' fine annotations: the folders as unpacked, labelIds to the 19 classes."""

from pathlib import Path

from eval_segmentation.pairs import IGNORE, Colour, Listing, Pair
from siambench.errors import UserError
from siambench.files import existing

# The 19 classes that are trained and tested, in the order of their train ids: labelId and colour; the
# other ids from 0 to 33 are void. Source: mcordts/cityscapesScripts, helpers/labels.py.
CLASSES: dict[str, tuple[int, Colour]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_IDS = 34  # 0 to 33


def list_cityscapes(root: Path) -> Listing:
    """leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/.../*_gtFine_labelIds.png.

    Raises:
        UserError: a folder is absent or empty.
    """
    trained = {id_: label for label, (id_, _) in enumerate(CLASSES.values())}
    return Listing(
        folder=root,
        classes=list(CLASSES),
        values=range(_IDS),
        labels=[trained.get(id_, IGNORE) for id_ in range(_IDS)],
        train=_pairs(root, "train"),
        val=_pairs(root, "val"),
        palette=[colour for _, colour in CLASSES.values()],
    )


def _pairs(root: Path, split: str) -> list[Pair]:
    hint = "expected leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_labelIds.png"
    images = existing(root / "leftImg8bit" / split, "Cityscapes images", folder=True, hint=hint)
    masks = existing(root / "gtFine" / split, "Cityscapes masks", folder=True, hint=hint)
    ending = "_leftImg8bit.png"
    found = sorted(images.glob(f"*/*{ending}"))
    if not found:
        raise UserError(f"{images} has no CITY/*{ending}; unpack leftImg8bit_trainvaltest.zip here")
    return [
        Pair(p, masks / p.parent.name / (p.name[: -len(ending)] + "_gtFine_labelIds.png"))
        for p in found
    ]
