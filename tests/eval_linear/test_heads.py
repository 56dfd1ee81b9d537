"""The heads' loss, gradient and norm against torch's modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import eval_linear.heads
from eval_linear.heads import Heads
from eval_linear.losses import totals
from eval_linear.optim import HeadOptimizer
from eval_linear.scores import Tally


def batch(seed: int, images: int = 8, dim: int = 12, classes: int = 5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, dim, generator=generator) * 3 + 1
    return x, torch.randint(classes, (images,), generator=generator)


def test_weights_start_as_the_protocol_says_and_alike():
    heads = Heads(512, 100, 3, seed=4)
    assert heads.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(heads.weight.mean().item()) < 2e-4
    assert not heads.bias.any()
    assert torch.equal(heads.weight[0], heads.weight[2])
    assert not torch.equal(heads.weight[0], Heads(512, 100, 1, seed=5).weight[0])


@pytest.mark.parametrize("channels", [0, 4])
def test_loss_and_gradient_equal_autograd(channels):
    heads = Heads(12, 5, 2, channels=channels, seed=0)
    heads.weight[1] += 0.1
    heads.bias[1] += torch.linspace(-1, 1, 5)
    x, y = batch(1)
    keep = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1.0])
    weight = torch.stack([torch.full((8,), 1 / 8), keep / keep.sum()], 1)
    ((_, loss, grads),) = heads.gradients(x, y, weight)
    norm = nn.BatchNorm2d(4, affine=False) if channels else nn.Identity()
    normed = norm(x.view(8, 4, 3, 1) if channels else x).flatten(1)
    for head, chosen in ((0, torch.arange(8)), (1, keep.nonzero().flatten())):
        w, b = (t[head].clone().requires_grad_() for t in (heads.weight, heads.bias))
        wanted = F.cross_entropy(F.linear(normed[chosen], w, b), y[chosen])
        wanted.backward()
        torch.testing.assert_close(loss[head], wanted.detach())
        torch.testing.assert_close(grads[0][head], w.grad)
        torch.testing.assert_close(grads[1][head], b.grad)


def all_of(heads, x, y, weight):
    """Losses and gradients of all blocks, put together."""
    blocks = [
        (loss, [g.clone() for g in grads]) for _, loss, grads in heads.gradients(x, y, weight)
    ]
    losses, grads = zip(*blocks, strict=True)
    return len(blocks), torch.cat(losses), [torch.cat(part) for part in zip(*grads, strict=True)]


def test_blocks_of_heads_change_nothing(monkeypatch):
    heads = Heads(12, 5, 7, seed=0)
    heads.weight += torch.randn(heads.weight.shape, generator=torch.Generator().manual_seed(6))
    x, y = batch(2)
    weight = torch.full((8, 7), 1 / 8)
    number, loss, grads = all_of(heads, x, y, weight)
    assert number == 1
    for columns, blocks in ((10, 4), (1, 7)):  # as many heads as fit, at least one
        monkeypatch.setattr(eval_linear.heads, "_COLUMNS", columns)
        number, cut, parts = all_of(heads, x, y, weight)
        assert number == blocks
        torch.testing.assert_close(cut, loss)
        torch.testing.assert_close(parts, grads)


def test_several_labels_are_a_sigmoid_each_without_those_left_out():
    """The mean over the entries that count, per head; as autograd has it."""
    heads = Heads(12, 5, 2, seed=0)
    heads.weight[1] += 0.3
    heads.bias[1] += torch.linspace(-1, 1, 5)
    x, _ = batch(3)
    labels = torch.randint(-1, 2, (8, 5), generator=torch.Generator().manual_seed(3)).to(torch.int8)
    assert set(labels.unique().tolist()) == {-1, 0, 1}
    keep = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1.0])
    weight = torch.stack([torch.ones(8), keep], 1)
    count = totals(weight, labels)
    _, loss, grads = all_of(heads, x, labels, weight / count)
    for head, images in ((0, torch.arange(8)), (1, keep.nonzero().flatten())):
        counted = labels[images] != 0
        assert count[head] == counted.sum()
        w, b = (t[head].clone().requires_grad_() for t in (heads.weight, heads.bias))
        wanted = F.binary_cross_entropy_with_logits(
            F.linear(x[images], w, b)[counted], (labels[images] == 1).float()[counted]
        )
        wanted.backward()
        torch.testing.assert_close(loss[head], wanted.detach())
        torch.testing.assert_close(grads[0][head], w.grad)
        torch.testing.assert_close(grads[1][head], b.grad)


@pytest.mark.parametrize("lars", [False, True])
def test_a_sweep_ends_as_its_heads_alone_by_autograd(lars):
    """Learning rates × weight decays at once, against nn.Linear and each pair alone."""
    settings = [(rate, decay) for rate in (0.5, 5.0) for decay in (0.0, 0.01)]
    batches = [batch(seed) for seed in range(12)]

    def trained(settings):
        heads = Heads(12, 5, len(settings), seed=1)
        rates, decays = zip(*settings, strict=True)
        optimizer = HeadOptimizer(
            [heads.weight, heads.bias], rates, decays, lars=lars, momentum=0.9, nesterov=False
        )
        for x, y in batches:
            for block, _, grads in heads.gradients(x, y, torch.full((8, len(settings)), 1 / 8)):
                optimizer.step(grads, 0.1, block)
        return heads

    together = trained(settings)
    for head, (rate, decay) in enumerate(settings):
        alone = trained([(rate, decay)])
        torch.testing.assert_close(together.weight[head], alone.weight[0])
        if not lars:
            linear = nn.Linear(12, 5)
            linear.weight.data.copy_(Heads(12, 5, 1, seed=1).weight[0])
            linear.bias.data.zero_()
            sgd = torch.optim.SGD(linear.parameters(), 0.1 * rate, 0.9, weight_decay=decay)
            for x, y in batches:
                sgd.zero_grad()
                F.cross_entropy(linear(x), y).backward()
                sgd.step()
            torch.testing.assert_close(
                together.weight[head], linear.weight.data, atol=1e-5, rtol=1e-4
            )


def test_a_loss_beyond_float32_is_a_number():
    heads = Heads(12, 5, 1, seed=0)
    heads.bias[0, 0] = 1e4
    ((_, loss, grads),) = heads.gradients(
        batch(4)[0], torch.ones(8).long(), torch.full((8, 1), 0.125)
    )
    assert 80 < loss.item() < 90
    assert all(grad.isfinite().all() for grad in grads)


def test_norm_tracks_and_folds_like_torch():
    """Running statistics, evaluation-mode scores and the folded head equal BatchNorm2d + Linear."""
    heads = Heads(12, 5, 1, channels=4, seed=0)
    norm = nn.BatchNorm2d(4, affine=False)
    for seed in range(3):
        x, y = batch(seed)
        list(heads.gradients(x, y, torch.full((8, 1), 1 / 8)))
        norm(x.view(8, 4, 3, 1))
    torch.testing.assert_close(heads.mean, norm.running_mean)
    torch.testing.assert_close(heads.var, norm.running_var)
    x, _ = batch(9)
    scores = heads.logits(x)[:, 0]
    normed = norm.eval()(x.view(8, 4, 3, 1)).flatten(1)
    torch.testing.assert_close(scores, F.linear(normed, heads.weight[0], heads.bias[0]))
    torch.testing.assert_close(scores, F.linear(x, *heads.plain(0)), atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("several", [False, True])
def test_a_step_on_a_gpu_does_not_wait_for_it(several):
    heads = Heads(12, 5, 3, channels=4, device="cuda")
    optimizer = HeadOptimizer(
        [heads.weight, heads.bias], [0.1] * 3, [1e-4] * 3, lars=True, momentum=0.9, nesterov=True
    )
    x, y = (tensor.cuda() for tensor in batch(5))
    labels = F.one_hot(y, 5).to(torch.int8) if several else y
    weight, tally = torch.ones(8, 3, device="cuda"), Tally(keep=0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        part = weight / totals(weight, labels).clamp(min=1)
        for block, _, grads in heads.gradients(x, labels, part):
            optimizer.step(grads, 0.5, block)
        tally.add(heads.logits(x), y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert heads.weight.isfinite().all()
