"""VOC 2012, alone or with the masks of SBD ("aug"): PNGs of SegmentationClassAug or SBD's own .mat files."""

from pathlib import Path

from eval_segmentation.pairs import Listing, Pair, voc_colours
from siambench.data.voc import class_names, split_ids, voc_folder
from siambench.errors import UserError
from siambench.files import existing

# Names under which the list of VOC's and SBD's training images goes round.
AUG_LISTS = ("train_aug", "trainaug")
_AUG_FOLDER = "SegmentationClassAug"


def list_voc(root: Path, *, aug: bool, sbd: str = "") -> Listing:
    """VOC's own masks for its own training and val images, SBD's for the rest of the aug list.

    mmselfsup does the same: configs/benchmarks/mmsegmentation/_base_/datasets/pascal_voc12_aug.py.

    Args:
        root: the folder that holds VOC2012 or VOCdevkit.
        aug: with SBD's images.
        sbd: SBD's folder (benchmark_RELEASE, or its dataset folder); ``""`` for masks in
            SegmentationClassAug.

    Raises:
        UserError: a list or folder is absent or empty, or a training image is one of val.
    """
    folder = voc_folder(root, "2012")
    classes = ["background", *class_names(folder, "train")]
    own, val = _ids(folder, "train"), _ids(folder, "val")
    train, rest = (own, folder / _AUG_FOLDER) if not aug else _aug(folder, own, val, sbd)
    ending = ".mat" if rest.name == "cls" else ".png"
    annotated_by_voc = {*own, *val}

    def pair(name: str) -> Pair:
        voc = name in annotated_by_voc
        mask = folder / "SegmentationClass" / f"{name}.png" if voc else rest / f"{name}{ending}"
        return Pair(folder / "JPEGImages" / f"{name}.jpg", mask)

    return Listing(
        folder=folder,
        classes=classes,
        values=range(len(classes)),
        labels=range(len(classes)),
        train=[pair(name) for name in train],
        val=[pair(name) for name in val],
        palette=voc_colours(len(classes)),
    )


def _aug(folder: Path, own: list[str], val: list[str], sbd: str) -> tuple[list[str], Path]:
    """The training images of VOC and SBD, and the folder of SBD's masks."""
    lists = folder / "ImageSets" / "Segmentation"
    masks = folder / _AUG_FOLDER
    if sbd:
        masks = _sbd_folder(sbd) / "cls"
    found = next((name for name in AUG_LISTS if (lists / f"{name}.txt").is_file()), "")
    if found:
        source, train = lists / f"{found}.txt", _ids(folder, found)
    elif (lists / "aug.txt").is_file():  # mmsegmentation's converter: what is not in train.txt
        source, train = lists / "aug.txt", list(dict.fromkeys([*own, *_ids(folder, "aug")]))
    elif sbd:  # 8,498 and 2,857 images, with VOC's own 1,464 and without its val: 10,582
        names = [*own, *(n for split in ("train", "val") for n in _sbd_ids(sbd, split))]
        tested = set(val)
        return [name for name in dict.fromkeys(names) if name not in tested], masks
    else:
        raise UserError(
            f"{lists} has no train_aug.txt (nor trainaug.txt, nor aug.txt): name SBD's folder with "
            f"--sbd, or add its masks ({_AUG_FOLDER}) and their list, or train on VOC's own with "
            "--dataset voc12 and no --preset"
        )
    if leaked := sorted(set(train) & set(val)):
        raise UserError(
            f"{source} holds {len(leaked)} images of val.txt, {leaked[0]} among them; remove them: "
            "val is what is tested on"
        )
    return train, masks


def _ids(folder: Path, split: str) -> list[str]:
    """Image ids of a segmentation list; DeepLab's lists give paths, whose stems are the ids."""
    lines = split_ids(folder, split, "Segmentation")
    return list(dict.fromkeys(Path(line).stem for line in lines))


def _sbd_folder(sbd: str) -> Path:
    folder = Path(sbd) / "dataset" if (Path(sbd) / "dataset").is_dir() else Path(sbd)
    hint = "point --sbd at benchmark_RELEASE, which holds dataset/cls/*.mat"
    existing(folder / "cls", "SBD's masks", folder=True, hint=hint)
    return folder


def _sbd_ids(sbd: str, split: str) -> list[str]:
    path = existing(_sbd_folder(sbd) / f"{split}.txt", "SBD's list")
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise UserError(f"{path} is empty; unpack SBD again")
    return names
