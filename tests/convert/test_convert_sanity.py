"""The numbers that betray a broken or untrained file, on tensors whose history is known."""

from pathlib import Path

import checkpoints
import pytest
import torch
import torchvision
from torch import nn

from siambench.checkpoints.sanity import inspect, looks_initialised
from siambench.checkpoints.source import load_backbone, read_checkpoint


def body(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in model.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_fresh_torchvision_model_is_recognised_throughout(arch: str, seed: int) -> None:
    torch.manual_seed(seed)
    found = inspect(body(torchvision.models.get_model(arch)))
    count = {"resnet18": 20, "resnet50": 53}[arch]
    assert (found.convolutions, found.batch_norms, found.never_updated) == (count, count, count)
    assert found.as_initialised >= count - 1  # 3 tests at 4 sigma each
    assert (found.all_zero, found.non_finite) == (0, 0)
    assert len(found.warnings()) == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (64, 64, 3, 3), (512, 256, 1, 1)])
def test_known_draws_and_others(shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(shape[1], shape[0], shape[2])
    assert looks_initialised(conv.weight)  # PyTorch's own: uniform
    for mode in "fan_in", "fan_out":
        nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
        assert looks_initialised(conv.weight)
    drawn = conv.weight.detach()
    tails = torch.distributions.Laplace(0, drawn.std() / 2**0.5).sample(shape)
    for trained in (drawn * 1.1, drawn + 0.2 * drawn.std(), tails, drawn + 0.5 * tails):
        assert not looks_initialised(trained)
    assert not looks_initialised(torch.zeros(shape))
    assert not looks_initialised(torch.full(shape, torch.nan))


def test_training_moves_the_numbers() -> None:
    """Not a simulation of training: 30 steps of it."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=2, zero_init_residual=True)
    fresh = inspect(body(model))
    assert (fresh.all_zero, fresh.never_updated) == (8, 20)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(30):
        x = torch.randn(4, 3, 32, 32)
        nn.functional.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = inspect(body(model))
    assert (trained.all_zero, trained.never_updated) == (0, 0)
    assert trained.as_initialised < fresh.as_initialised


def test_the_report_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = checkpoints.make_resnet().state_dict()
    for name in state:
        if name.startswith("layer4") and "running" in name:
            state[name] = torch.full_like(state[name], float(name.endswith("var")))
    state["layer3.0.bn2.weight"] = torch.zeros_like(state["layer3.0.bn2.weight"])
    source = checkpoints.save(state, tmp_path)
    _, _, report = read_checkpoint(source)
    assert (report.sanity.never_updated, report.sanity.all_zero) == (3, 1)
    notes = " ".join(report.notes)
    assert "3 of 13 batch norms never saw an image" in notes
    assert "all zero (dead, or never trained): 1" in notes
    load_backbone(source)
    assert "batch norms never saw an image" in capsys.readouterr().err
    assert read_checkpoint("random:resnet10-w8")[2].notes == []
