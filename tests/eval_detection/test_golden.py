"""Agreement with numbers that the real detectron2 computed (make_golden.py), without it."""

import json
from pathlib import Path

import pytest
import torch
from agreement import (
    GOLDEN,
    GOLDEN_SIZES,
    assert_agree,
    config_of,
    our_model,
    ours_of,
    packed,
    their_model,
    theirs_of,
)
from safetensors import safe_open

from eval_detection.torchvision_engine.names import from_detectron2, to_detectron2

PATH = Path(__file__).parent / "golden.safetensors"


def golden(case: str) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """The tensors of ``case``, and the names and shapes of detectron2's parameters."""
    with safe_open(PATH, "pt") as file:
        mine = [name for name in file.keys() if name.startswith(f"{case}.")]  # noqa: SIM118
        names = json.loads(file.metadata()["names"])[case]
        return {name.removeprefix(f"{case}."): file.get_tensor(name) for name in mine}, names


@pytest.mark.parametrize("case", GOLDEN)
def test_we_compute_what_detectron2_computed(case: str) -> None:
    arch, changes = GOLDEN[case]
    expected, _ = golden(case)
    proposals = [expected[f"proposals{i}"] for i in range(len(GOLDEN_SIZES))]
    found = ours_of(our_model(arch, config_of(**changes)), GOLDEN_SIZES, proposals)
    assert_agree(found, expected, len(GOLDEN_SIZES))


@pytest.mark.parametrize("case", GOLDEN)
def test_names_and_shapes_are_detectron2s(case: str) -> None:
    arch, changes = GOLDEN[case]
    _, theirs = golden(case)
    ours = our_model(arch, config_of(**changes)).state_dict()
    assert {name: list(t.shape) for name, t in to_detectron2(ours).items()} == theirs
    back = from_detectron2({name: torch.empty(shape) for name, shape in theirs.items()})
    assert {name: t.shape for name, t in back.items()} == {n: t.shape for n, t in ours.items()}


@pytest.mark.detectron2
@pytest.mark.parametrize("case", GOLDEN)
def test_detectron2_still_computes_it(case: str) -> None:
    arch, changes = GOLDEN[case]
    config = config_of(**changes)
    model = their_model(arch, config)
    expected, names = golden(case)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == names
    found = packed(theirs_of(model, config, GOLDEN_SIZES))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3, msg=name)
