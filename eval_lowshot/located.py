"""Which training images the paths of a list are."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from siambench.data.classification import Split
from siambench.errors import UserError


def locate(paths: Iterable[str], split: Split) -> dict[str, list[int]]:
    """The rows that each path may mean: of that very name, else where path or name ends with the other."""
    alike: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        alike.setdefault(path.rpartition("/")[2], []).append(path)
    rows: dict[str, dict[str, int]] = {}
    for row in range(len(split.images)):
        name = split.images.name(row)
        for path in alike.get(name.rpartition("/")[2], ()):
            if f"/{path}".endswith(f"/{name}") or name.endswith(f"/{path}"):
                rows.setdefault(path, {}).setdefault(name, row)
    return {
        path: [names[path]] if path in names else list(names.values())
        for path, names in rows.items()
    }


def rows_of(
    paths: Sequence[str], candidates: dict[str, list[int]], split: Split, file: Path
) -> np.ndarray:
    """The row of each path, int64.

    Args:
        paths: of images.
        candidates: as :func:`locate` found them.
        split: whose rows they are.
        file: that has the paths, for messages.

    Raises:
        UserError: a path is none of the split's images, or could be several.
    """
    wrong = [path for path in paths if len(candidates.get(path, ())) != 1]
    if wrong:
        several = len(candidates.get(wrong[0], ())) > 1
        what = "could be several images" if several else "is not an image"
        raise UserError(
            f"{file}: {wrong[0]} {what} of {split.name} ({len(wrong):,} of {len(paths):,} paths); they must "
            f"end as the data's do, e.g. {split.images.name(0)}"
        )
    return np.array([candidates[path][0] for path in paths], np.int64)
