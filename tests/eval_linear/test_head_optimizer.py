"""LARS and SGD on batched heads, and the schedules, against plain numpy and torch."""

import numpy as np
import pytest
import torch

from eval_linear.optim import HeadOptimizer, lars_gradient, schedule_factor


def lars_in_numpy(w, gradients, rate, momentum, wd, nesterov):
    """50 steps by the published formula; zero norms pass the gradient unchanged."""
    buffer = np.zeros_like(w)
    for g in gradients:
        norm_w, norm_g = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        if norm_w > 0 and norm_g > 0:
            g = (g + wd * w) * (0.001 * norm_w / (norm_g + wd * norm_w + 1e-8))
        buffer = momentum * buffer + g
        w = w - rate * (g + momentum * buffer if nesterov else buffer)
    return w


@pytest.mark.parametrize("wd", [0.0, 1e-4])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_equals_the_formula_over_50_steps(wd, nesterov):
    rng = np.random.default_rng(0)
    rates = [1.6, 0.3]
    weight = rng.normal(0, 0.01, (2, 5, 7))
    bias = np.zeros((2, 5))  # starts at zero as in the protocol: the first step is unscaled
    gradients = [(rng.normal(size=(2, 5, 7)), 0.01 * rng.normal(size=(2, 5))) for _ in range(50)]
    params = [torch.tensor(weight), torch.tensor(bias)]
    optimizer = HeadOptimizer(
        params, rates, lars=True, momentum=0.9, weight_decay=wd, nesterov=nesterov
    )
    for pair in gradients:
        optimizer.step([torch.tensor(g) for g in pair])
    for which, start in enumerate((weight, bias)):
        for head, rate in enumerate(rates):
            history = [pair[which][head] for pair in gradients]
            wanted = lars_in_numpy(start[head], history, rate, 0.9, wd, nesterov)
            np.testing.assert_allclose(params[which][head].numpy(), wanted, rtol=1e-6, atol=1e-9)


def test_lars_scales_at_weight_decay_zero():
    """The step's length is the weight's, whatever the gradient's: plain SGD fails this."""
    weight = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    gradient = torch.ones(1, 4, 3)
    small = lars_gradient(weight, gradient, 0.0)
    large = lars_gradient(weight, 1000 * gradient, 0.0)
    torch.testing.assert_close(small, large)
    torch.testing.assert_close(small.norm(), 0.001 * weight.norm())


def test_lars_heads_do_not_influence_each_other():
    generator = torch.Generator().manual_seed(1)
    weight, gradient = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    together = lars_gradient(weight, gradient, 1e-4)
    for head in range(3):
        alone = lars_gradient(weight[head : head + 1], gradient[head : head + 1], 1e-4)
        torch.testing.assert_close(together[head : head + 1], alone)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("wd", [0.0, 1e-2])
def test_sgd_equals_torch(nesterov, wd):
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(2, 3, 4, generator=generator)
    rates, factors = [0.1, 1.0], [1.0, 0.5, 0.1]
    gradients = [torch.randn(2, 3, 4, generator=generator) for _ in factors]
    param = start.clone()
    ours = HeadOptimizer(
        [param], rates, lars=False, momentum=0.9, weight_decay=wd, nesterov=nesterov
    )
    for factor, gradient in zip(factors, gradients, strict=True):
        ours.step([gradient], factor)
    for head, rate in enumerate(rates):
        theirs = start[head].clone().requires_grad_()
        sgd = torch.optim.SGD([theirs], rate, momentum=0.9, weight_decay=wd, nesterov=nesterov)
        for factor, gradient in zip(factors, gradients, strict=True):
            sgd.param_groups[0]["lr"] = rate * factor
            theirs.grad = gradient[head].clone()
            sgd.step()
        torch.testing.assert_close(param[head], theirs.detach())


def test_schedules_equal_torch():
    param = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([param], 1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 90)
    for epoch in range(90):
        assert schedule_factor("cosine", epoch, 90, [], 0.1) == pytest.approx(
            cosine.get_last_lr()[0], abs=1e-9
        )
        sgd.step()
        cosine.step()
    sgd = torch.optim.SGD([param], 1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(sgd, [60, 80], 0.1)
    for epoch in range(100):
        assert schedule_factor("step", epoch, 100, [60, 80], 0.1) == pytest.approx(
            steps.get_last_lr()[0]
        )
        sgd.step()
        steps.step()
