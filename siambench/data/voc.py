"""The VOCdevkit layout: split lists and class names (annotations are the evaluations' business)."""

from pathlib import Path

from siambench.errors import UserError
from siambench.files import existing


def voc_folder(devkit: str | Path, year: str) -> Path:
    """``devkit/VOC{year}``, where ``devkit`` may also be the folder that holds ``VOCdevkit``.

    Raises:
        UserError: there is no such folder.
    """
    devkit = Path(devkit)
    if (devkit / "VOCdevkit").is_dir():
        devkit = devkit / "VOCdevkit"
    return existing(
        devkit / f"VOC{year}",
        "VOC folder",
        folder=True,
        hint="point --data at the folder that holds VOCdevkit/VOC2007 (and VOC2012)",
    )


def split_ids(folder: Path, split: str, task: str = "Main") -> list[str]:
    """Image ids of ``ImageSets/{task}/{split}.txt``, in file order.

    Raises:
        UserError: the list is absent or empty.
    """
    path = existing(folder / "ImageSets" / task / f"{split}.txt", "VOC split list")
    ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{path} is empty")
    return ids


def class_names(folder: Path, split: str) -> list[str]:
    """The classes, from the files ``ImageSets/Main/CLASS_{split}.txt`` (alphabetical, as officially).

    Raises:
        UserError: there are none.
    """
    suffix = f"_{split}.txt"
    names = sorted(
        p.name[: -len(suffix)] for p in (folder / "ImageSets" / "Main").glob(f"*{suffix}")
    )
    if not names:
        raise UserError(f"{folder}/ImageSets/Main has no CLASS{suffix} files; unpack VOC whole")
    return names
