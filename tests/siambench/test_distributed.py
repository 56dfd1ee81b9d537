"""Several processes as one: batch norm over all of them, errors that end all of them."""

import multiprocessing
import os
import socket
from functools import partial

import pytest
import torch
from torch import nn

from siambench.distributed import SyncBatchNorm, World, join, sync_batchnorm
from siambench.errors import UserError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch"])


def together(work, size, folder):
    """Run ``work(world, folder)`` in ``size`` processes; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    all_of_them = [
        CONTEXT.Process(target=_enter, args=(work, rank, size, port, folder))
        for rank in range(size)
    ]
    for process in all_of_them:
        process.start()
    for process in all_of_them:
        process.join(120)
    return [process.exitcode for process in all_of_them]


def _enter(work, rank, size, port, folder):
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, size, size, "127.0.0.1", port)
    os.environ.update({n: str(v) for n, v in zip(names, values, strict=True)})
    try:
        with join("cpu") as world:
            work(world, folder)
    except UserError as error:
        (folder / f"{rank}.error").write_text(str(error))
        raise SystemExit(2) from None


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 7),
        nn.BatchNorm1d(7, affine=False),
    ).double()


def images():
    generator = torch.Generator().manual_seed(1)
    # means far from zero and unlike each other: one-pass variances and local means would show
    return torch.randn(12, 3, 6, 6, generator=generator, dtype=torch.float64) + torch.linspace(
        50, 500, 12, dtype=torch.float64
    ).view(12, 1, 1, 1)


def target():
    return torch.randn(12, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _train_step(world, folder, cuts):
    model = world.parallel(sync_batchnorm(net(), world))
    mine = slice(*cuts[world.rank : world.rank + 2])
    x = images()[mine].requires_grad_()
    for _ in range(2):
        out = model(x)
        loss = (out * target()[mine]).square().sum() * world.size / (12 * 7)
        model.zero_grad()
        x.grad = None
        loss.backward()
    model.eval()
    made = {
        "out": out,
        "x": x.grad / world.size,  # of the mean over all images, as the parameters' are
        "grads": [p.grad for p in model.parameters()],
        "state": model.module.state_dict(),
        "eval": model.module(images()[:2]),
    }
    torch.save(made, folder / f"{world.rank}.pt")


@pytest.mark.parametrize("cuts", [(0, 6, 12), (0, 4, 8, 12), (0, 1, 9, 12)])
def test_sync_batch_norm_is_batch_norm_of_the_whole_batch(tmp_path, cuts):
    size = len(cuts) - 1
    assert together(partial(_train_step, cuts=cuts), size, tmp_path) == [0] * size
    made = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    model, x = net(), images().requires_grad_()
    for _ in range(2):
        out = model(x)
        model.zero_grad()
        x.grad = None
        (out * target()).square().mean().backward()
    torch.testing.assert_close(torch.cat([m["out"] for m in made]), out)
    torch.testing.assert_close(torch.cat([m["x"] for m in made]), x.grad)
    model.eval()
    for m in made:
        for a, b in zip(m["grads"], model.parameters(), strict=True):
            torch.testing.assert_close(a, b.grad)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(m["state"][name], value, msg=name)
        torch.testing.assert_close(m["eval"], model(images()[:2]))


def _bfloat16(world, folder):
    layer = SyncBatchNorm(4)
    x = torch.randn(8, 4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(world.rank))
    with torch.autocast("cpu", torch.bfloat16):
        torch.save((x, layer(x), layer.running_var), folder / f"{world.rank}.pt")


def test_sync_batch_norm_keeps_the_type_and_computes_in_float32(tmp_path):
    assert together(_bfloat16, 2, tmp_path) == [0, 0]
    made = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = nn.BatchNorm1d(4)
    expected = whole(torch.cat([x for x, _, _ in made]).float())
    found = torch.cat([y for _, y, _ in made])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)
    torch.testing.assert_close(made[0][2], whole.running_var)


def _share(world, folder):
    assert world.from_first(lambda: {"rank": world.rank}) == {"rank": 0}
    assert world.any(world.rank == 1) is True
    assert world.any(False) is False
    values = torch.tensor([float(world.rank), 4.0])
    torch.testing.assert_close(world.mean(values), torch.tensor([0.5, 4.0]))
    assert values[1] == 4.0
    assert world.collect({"rank": world.rank}) == [{"rank": 0}, {"rank": 1}][: 2 - 2 * world.rank]
    world.from_first(lambda: _refuse())


def _refuse():
    raise UserError("no such folder")


def test_what_the_first_process_refuses_ends_all_and_is_said_once(tmp_path):
    assert together(_share, 2, tmp_path) == [2, 2]
    assert (tmp_path / "0.error").read_text() == "no such folder"
    assert not (tmp_path / "1.error").exists()


def _die(world, folder):
    if world.rank == 1:
        os._exit(7)
    world.mean(torch.ones(3))


def _fault(world, folder):
    raise RuntimeError("index out of range")


def test_a_lost_process_is_said_and_our_own_faults_are_not_taken_for_one(tmp_path):
    assert together(_die, 2, tmp_path) == [2, 7]
    assert "process 0 of 2 lost another one" in (tmp_path / "0.error").read_text()
    (tmp_path / "0.error").unlink()
    assert together(_fault, 2, tmp_path) == [1, 1]
    assert not list(tmp_path.glob("*.error"))


def test_one_process_is_itself():
    with join("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"))
        model = net()
        assert world.parallel(model) is model
        assert not any(isinstance(m, SyncBatchNorm) for m in sync_batchnorm(model, world).modules())
        assert world.from_first(lambda: 3) == 3
        assert world.any(True) is True
        assert world.collect("mine") == ["mine"]
        with pytest.raises(UserError, match="no such folder"):
            world.from_first(_refuse)


@pytest.mark.gpu
def test_torchs_sync_batch_norm_takes_over_on_gpus():
    world = World(0, 2, torch.device("cuda"))
    kinds = {type(m) for m in sync_batchnorm(net(), world).modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
