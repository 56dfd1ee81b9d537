"""Confusion matrix and IoU against a count pixel by pixel and torchmetrics."""

import csv

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from eval_segmentation.metrics import confusion, csv_of, metrics_of

CLASSES = ["a", "b", "c", "d"]


def _example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (3, 7, 5), generator=generator)
    predictions = torch.where(
        torch.rand(labels.shape, generator=generator) < 0.6,
        labels,
        torch.randint(0, 4, labels.shape, generator=generator),
    )
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return labels.to(torch.uint8), predictions


def _values(matrix: torch.Tensor) -> dict[str, float]:
    metrics = metrics_of(matrix, CLASSES, "val")
    assert {m.split for m in metrics} == {"val"}
    per_class = {m.params["class"] for m in metrics if m.name == "acc"}
    assert per_class <= set(CLASSES)
    return {m.params.get("class", m.name): m.value for m in metrics if m.name != "acc"}


def test_confusion_counts_pixel_by_pixel() -> None:
    labels, predictions = _example()
    matrix = confusion(labels, predictions, 4)
    brute = torch.zeros(4, 4, dtype=torch.int64)
    for label, prediction in zip(
        labels.flatten().tolist(), predictions.flatten().tolist(), strict=True
    ):
        if label != 255:
            brute[label, prediction] += 1
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, brute)


def test_metrics_agree_with_torchmetrics() -> None:
    labels, predictions = _example()
    ours = _values(confusion(labels, predictions, 4))
    target = labels.long()

    def theirs(kind: type, average: str) -> torch.Tensor:
        return 100 * kind(4, average=average, ignore_index=255)(predictions, target)

    assert ours["mIoU"] == pytest.approx(float(theirs(MulticlassJaccardIndex, "macro")), abs=1e-4)
    per_class = theirs(MulticlassJaccardIndex, "none").tolist()
    assert [ours[c] for c in CLASSES] == pytest.approx(per_class, abs=1e-4)
    matrix = confusion(labels, predictions, 4)
    accuracies = [m.value for m in metrics_of(matrix, CLASSES, "val") if m.name == "acc"]
    assert accuracies == pytest.approx(theirs(MulticlassAccuracy, "none").tolist(), abs=1e-4)
    assert ours["pixel_acc"] == pytest.approx(float(theirs(MulticlassAccuracy, "micro")), abs=1e-4)
    assert ours["mean_acc"] == pytest.approx(float(theirs(MulticlassAccuracy, "macro")), abs=1e-4)


def test_one_matrix_over_the_set_is_not_a_mean_of_batches() -> None:
    labels, predictions = _example()
    whole = _values(confusion(labels, predictions, 4))
    parts = [confusion(a, b, 4) for a, b in zip(labels, predictions, strict=True)]
    assert _values(sum(parts)) == whole
    assert sum(_values(p)["mIoU"] for p in parts) / 3 != pytest.approx(whole["mIoU"], abs=0.1)


def test_a_class_nowhere_to_be_seen_is_left_out_of_the_means() -> None:
    labels = torch.tensor([0, 0, 0, 1, 255, 255])
    predictions = torch.tensor([0, 0, 1, 1, 2, 3])  # c and d: predicted on ignored pixels only
    values = _values(confusion(labels, predictions, 4))
    assert "c" not in values
    assert "d" not in values
    assert values["mIoU"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert values["mean_acc"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert values["pixel_acc"] == pytest.approx(75)


def test_a_class_predicted_but_never_labelled_has_iou_zero() -> None:
    values = _values(confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 4))
    assert values["c"] == 0
    assert values["mIoU"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    assert values["mean_acc"] == pytest.approx(75)  # a and b only


def test_counts_beyond_float32_stay_exact() -> None:
    big = torch.zeros(4, 4, dtype=torch.int64)
    big[0, 0], big[0, 1], big[1, 1] = 2**31, 1, 3
    values = _values(big)
    assert values["b"] == pytest.approx(75)
    assert values["pixel_acc"] < 100


def test_confusion_as_a_table() -> None:
    matrix = torch.tensor([[5, 1], [0, 7]])
    rows = list(csv.reader(csv_of(matrix, ["a, b", "c"]).splitlines()))
    assert rows == [["labelled \\ predicted", "a, b", "c"], ["a, b", "5", "1"], ["c", "0", "7"]]
