"""Pictures by number, as the loaders see them: files of a folder, or arrays in memory.

Both say by ``stamp`` whether they are still the same pictures, and by ``marks`` and ``digests`` which
of them may be, and are, pictures of another split.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from siambench.data.images import FileFacts, ImageList, decode_array, examine_images
from siambench.files import sha256_file


class Images(Protocol):
    """Pictures by number; picklable, and cheap to send to loader processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image:
        """Decoded: upright RGB."""
        ...

    def name(self, index: int) -> str:
        """The root-relative path, or e.g. ``"CIFAR10 train 17"``."""
        ...

    def stamp(self, rows: np.ndarray | None = None) -> str:
        """SHA-256 (hex) that changes when a picture or their order may have changed.

        Args:
            rows: int64, the numbers of some pictures, for what it would be of a set of these alone.
        """
        ...

    def marks(self) -> np.ndarray:
        """A number per picture that equal pictures share, uint64 (n,)."""
        ...

    def digests(self, indices: Sequence[int]) -> list[str]:
        """SHA-256 (hex) of the pictures with these numbers: of the files, or of the pixels."""
        ...


class FileImages:
    """Image files under one folder.

    The paths are one string of bytes, so that loader processes share them instead of copying every
    page on which a reference is counted.

    Args:
        root: folder the paths are relative to.
        paths: root-relative.
        facts: of the files, if they are known; else the files are looked at when they are asked for.

    Example:
        >>> FileImages("/data", ["cats/1.jpg"]).name(0)
        'cats/1.jpg'
    """

    def __init__(
        self, root: str | Path, paths: Sequence[str], facts: FileFacts | None = None
    ) -> None:
        self.root = str(root)
        self._names = os.fsencode("".join(f"{path}\0" for path in paths))
        ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._ends = np.concatenate([[-1], ends])
        self._facts = facts

    @classmethod
    def of(cls, images: ImageList) -> "FileImages":
        """The files of a checked list."""
        return cls(images.root, images.paths, images.facts)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Image.Image:
        """Decoded to upright RGB as :func:`siambench.data.images.decode` does.

        Raises:
            UserError: the file has become unreadable.
        """
        return Image.fromarray(decode_array(self.path(index)))

    def name(self, index: int) -> str:
        """The root-relative path."""
        return os.fsdecode(self._names[self._ends[index] + 1 : self._ends[index + 1]])

    def path(self, index: int) -> str:
        """The path to open."""
        return os.path.join(self.root, self.name(index))

    def stamp(self, rows: np.ndarray | None = None) -> str:
        """SHA-256 (hex) over every file's relative path, size, time of modification and last bytes."""
        names, facts = self._names, self.facts()
        if rows is not None:
            facts = facts[rows]
            names = os.fsencode("".join(f"{self.name(row)}\0" for row in rows.tolist()))
        parts = (names, facts.size.tobytes(), facts.mtime.tobytes(), facts.mark.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def marks(self) -> np.ndarray:
        """A number per file that equal files share, uint64 (n,)."""
        return self.facts().mark

    def digests(self, indices: Sequence[int]) -> list[str]:
        """SHA-256 of the files with these numbers."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda index: sha256_file(self.path(index)), indices))

    def facts(self) -> FileFacts:
        """Size, time and mark of every file, found once."""
        if self._facts is None:
            paths = [self.path(index) for index in range(len(self))]
            self._facts = examine_images(paths, skip_bad=False)[1]
        return self._facts


class ArrayImages:
    """Pictures in memory.

    Args:
        title: what they are, e.g. ``"CIFAR10 train"``.
        pixels: uint8, (n, H, W) grey or (n, H, W, 3) RGB.
    """

    def __init__(self, title: str, pixels: np.ndarray) -> None:
        self.title, self.pixels = title, np.ascontiguousarray(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        """RGB; grey in all three channels."""
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} {index}"

    def stamp(self, rows: np.ndarray | None = None) -> str:
        """SHA-256 (hex) over all pixels."""
        pixels = self.pixels if rows is None else self.pixels[rows]
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(pixels.data)
        return digest.hexdigest()

    def marks(self) -> np.ndarray:
        """A number per picture that equal pictures share, uint64 (n,)."""
        digests = (hashlib.blake2b(row, digest_size=8).digest() for row in self.pixels)
        return np.frombuffer(b"".join(digests), np.uint64)

    def digests(self, indices: Sequence[int]) -> list[str]:
        """SHA-256 of the pixels of the pictures with these numbers."""
        return [hashlib.sha256(self.pixels[index]).hexdigest() for index in indices]


class ChosenImages:
    """Some pictures of others.

    The stamp is that of a set of these alone: features that were kept stay good whatever comes and
    goes around them.

    Args:
        images: the pictures.
        rows: numbers of those that are chosen, in their order here.

    Raises:
        IndexError: there is no picture of such a number.

    Example:
        >>> ChosenImages(FileImages("/data", ["a.jpg", "b.jpg"]), [1]).name(0)
        'b.jpg'
    """

    def __init__(self, images: Images, rows: Sequence[int] | np.ndarray) -> None:
        self.images, self.rows = images, np.arange(len(images))[np.asarray(rows, np.int64)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        """Decoded: upright RGB."""
        return self.images[int(self.rows[index])]

    def name(self, index: int) -> str:
        """The picture's name among the others."""
        return self.images.name(int(self.rows[index]))

    def stamp(self, rows: np.ndarray | None = None) -> str:
        """SHA-256 (hex) of the chosen pictures alone."""
        return self.images.stamp(self.rows if rows is None else self.rows[rows])

    def marks(self) -> np.ndarray:
        """A number per picture that equal pictures share, uint64 (n,)."""
        return self.images.marks()[self.rows]

    def digests(self, indices: Sequence[int]) -> list[str]:
        """SHA-256 (hex) of the pictures with these numbers."""
        return self.images.digests(self.rows[np.asarray(indices, np.int64)].tolist())


def shared(first: Images, second: Images) -> np.ndarray:
    """The pictures of ``second`` that are in ``first`` too, byte for byte.

    Only pictures whose marks are in both are read.

    Returns:
        int64 (n, 2): numbers in ``first`` (the first such) and ``second``, by the latter.
    """
    marks = first.marks(), second.marks()
    ones = np.flatnonzero(np.isin(marks[0], marks[1]))
    twos = np.flatnonzero(np.isin(marks[1], marks[0]))
    place: dict[str, int] = {}
    for index, digest in zip(ones.tolist(), first.digests(ones.tolist()), strict=True):
        place.setdefault(digest, index)
    pairs = [
        (place[digest], index)
        for index, digest in zip(twos.tolist(), second.digests(twos.tolist()), strict=True)
        if digest in place
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)
