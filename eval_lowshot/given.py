"""Given low-shot samples: the index files of FAIR's and VISSL's scripts, and our own samples.json."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from eval_lowshot.config import FOLDS, SvmConfig
from eval_lowshot.index_files import Key, Part, by_class, missing, read_lists, read_matrices
from eval_lowshot.located import locate, rows_of
from eval_lowshot.samples import Sample, padded
from eval_lowshot.targets import targets
from siambench.data.classification import Classification
from siambench.errors import UserError, first_line
from siambench.files import existing


def read_samples(found: Classification, config: SvmConfig, kept: np.ndarray) -> list[Sample]:
    """The samples 0, 1, ... of every k from ``config.samples_dir``, by k, then number.

    Read is the first of these that is there:

    - ``samples.json``, as :func:`eval_lowshot.samples.write_samples` writes it;
    - several labels an image: ``*_sample{1...}_k{K}.npy``, images × classes of 1 positive, 0 negative,
      -1 not used; a row is an image, sorted by name, a column a class. As in
      fair_self_supervision_benchmark (extra_scripts/create_voc_low_shot*_samples.py and
      iccv_challenge) and VISSL (extra_scripts/create_low_shot_samples.py);
    - one label an image: ``train_images_sample{1...}_k{K}.npy`` and ``train_labels_...``, paths and
      class numbers, as the same projects' scripts make them of Places205.

    Args:
        found: the whole data set.
        config: which k and how many samples are wanted.
        kept: numbers of the classes that are measured, sorted; the samples are of these alone, and
            count classes and (one label an image) rows among what is kept.

    Raises:
        UserError: a file is missing, damaged or of another shape, a class has not k positives or no
            negative, an image is not in train, or a label is not the data's.
    """
    folder = existing(config.samples_dir, "--samples_dir", folder=True)
    wanted = list(product(config.k, range(config.samples)))
    truth = found.train.labels
    if found.multilabel:
        truth = targets(truth, range(len(found.classes)), str(config.difficult_train))
    if (folder / "samples.json").is_file():
        parts = _from_json(folder / "samples.json", found, truth, wanted)
    elif found.multilabel:
        parts = read_matrices(folder, found, truth, wanted)
    else:
        parts = read_lists(folder, found, wanted)
    place = np.cumsum(np.isin(truth, kept)) - 1 if not found.multilabel else np.empty(0)
    samples = []
    for (k, number), (where, part) in zip(wanted, parts, strict=True):
        chosen = [_checked(part, label, k, found, where) for label in kept.tolist()]
        if found.multilabel:
            samples.append(padded(chosen, k, number))
        else:
            images = place[np.concatenate([rows for rows, _ in chosen])]
            samples.append(
                Sample(k, number, images[None], np.repeat(np.arange(len(kept)), k)[None], False)
            )
    return samples


def content_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 (hex) over which images the samples have, and as what."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.k, sample.number, sample.images.shape)).encode())
        digest.update(sample.images.tobytes() + sample.labels.tobytes())
    return digest.hexdigest()


def _checked(
    part: Part, label: int, k: int, found: Classification, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """A class's images of a sample."""
    name = found.classes[label]
    rows, y = part.get(label, (np.empty(0, np.int64), np.empty(0, np.int8)))
    if (positives := int((y == 1).sum())) != k:
        raise UserError(
            f"{where}: class {name} has {positives} positive images, not {k}; name other files"
        )
    negatives, needed = int((y == -1).sum()), min(k, FOLDS)
    if found.multilabel and negatives < needed:
        raise UserError(
            f"{where}: class {name} has {negatives} negative images; training and its "
            f"cross-validation need {needed}"
        )
    if len(np.unique(rows)) < len(rows):
        raise UserError(f"{where}: class {name} has an image twice; name other files")
    return rows, y


def _from_json(
    file: Path, found: Classification, truth: np.ndarray, wanted: Sequence[Key]
) -> Iterator[tuple[str, Part]]:
    """What a run wrote."""
    try:
        content = json.loads(file.read_bytes())
        name_of = {str(row): str(name) for row, name in content[found.train.name].items()}
        lists = {
            (int(line["k"]), int(line["sample"]), line.get("class")): [
                name_of[str(row)] for row in line["images"]
            ]
            for line in content["samples"]
        }
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise UserError(
            f"{file} is not a samples.json of {found.train.name} ({type(error).__name__}: {first_line(error)})"
        ) from None
    candidates = locate(name_of.values(), found.train)
    there = {(k, number) for k, number, _ in lists}
    for k, number in wanted:
        if (k, number) not in there:
            raise missing(file, f"sample {number} of k {k}", {(k, n + 1) for k, n in there})
        where = f"{file}, k {k}, sample {number}"
        if not found.multilabel:
            rows = rows_of(lists.get((k, number, None), []), candidates, found.train, file)
            yield where, by_class(rows, truth)
            continue
        part = {}
        for column, name in enumerate(found.classes):
            rows = rows_of(lists.get((k, number, name), []), candidates, found.train, file)
            part[column] = rows, truth[rows, column]
            if not part[column][1].all():
                raise UserError(
                    f"{where}: an image of class {name} is left out of training; it was drawn with "
                    "--difficult_train negative"
                )
        yield where, part
