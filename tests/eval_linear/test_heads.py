"""The heads' loss, gradient and norm against torch's modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eval_linear.heads import Heads


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
