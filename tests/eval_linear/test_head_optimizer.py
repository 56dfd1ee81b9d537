"""LARS and SGD on batched heads, and the schedules, against torch's own optimiser."""

import math

import pytest
import torch
from timm.optim import Lars

from eval_linear.optim import HeadOptimizer, lars_, schedule_factor

RATES, DECAYS, FACTORS = [1.6, 0.3, 1.6], [0.0, 1e-4, 1e-2], [1.0, 0.5]


def problem(steps: int, seed: int = 0):
    """Weights (3, 5, 7) and biases (3, 5) that start at 0, and gradients of each step.

    At one step the biases' gradient is 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = [0.01 * normal(3, 5, 7), torch.zeros(3, 5, dtype=torch.float64)]
    grads = [[normal(3, 5, 7), 0.01 * normal(3, 5)] for _ in range(steps)]
    grads[steps // 2][1].zero_()
    return start, grads


def ours(start, grads, rates=RATES, decays=DECAYS, lars=True, nesterov=False):
    params = [p.clone() for p in start]
    optimizer = HeadOptimizer(params, rates, decays, lars=lars, momentum=0.9, nesterov=nesterov)
    for step, pair in enumerate(grads):
        optimizer.step([g.clone() for g in pair], FACTORS[step % 2])
    return params


def theirs(optimizer_of, start, grads, head, rate, before=lambda param: None):
    """One head alone, by an optimiser of torch's kind."""
    params = [p[head].clone().requires_grad_() for p in start]
    optimizer = optimizer_of(params)
    for step, pair in enumerate(grads):
        optimizer.param_groups[0]["lr"] = rate * FACTORS[step % 2]
        for param, grad in zip(params, pair, strict=True):
            param.grad = grad[head].clone()
            before(param)
        optimizer.step()
    return [param.detach() for param in params]


def apex_larc(decay):
    """What apex's LARC(trust_coefficient=.001, clip=False) does to a gradient; SGD has no decay then."""

    def length(values):
        return math.sqrt(sum(v * v for v in values.flatten().tolist()))

    def scale(param):
        w, g = length(param.detach()), length(param.grad)
        if w != 0 and g != 0:
            local = 0.001 * w / (g + w * decay + 1e-8)
            param.grad = (param.grad + decay * param.detach()) * local

    return scale


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_apex_larc_around_sgd_over_50_steps(nesterov):
    start, grads = problem(50)
    found = ours(start, grads, nesterov=nesterov)
    for head, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        wanted = theirs(
            lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, nesterov=nesterov),
            start,
            grads,
            head,
            rate,
            apex_larc(decay),
        )
        for mine, other, first in zip(found, wanted, start, strict=True):
            torch.testing.assert_close(mine[head], other, rtol=1e-6, atol=1e-12)
            assert (mine[head] - first[head]).norm() > 1e-3  # it moved


def test_weight_decay_zero_is_scaled_where_other_libraries_do_not():
    """timm's default takes plain SGD steps there; with always_adapt it is our LARS."""
    start, grads = problem(20, seed=1)
    (weight, bias) = ours(start, grads, decays=[0.0] * 3)
    unscaled = ours(start, grads, decays=[0.0] * 3, lars=False)
    for head, rate in enumerate(RATES):
        lazy = theirs(lambda p: Lars(p, momentum=0.9), start, grads, head, rate)
        eager = theirs(lambda p: Lars(p, momentum=0.9, always_adapt=True), start, grads, head, rate)
        torch.testing.assert_close(weight[head], eager[0], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(bias[head], eager[1], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(unscaled[0][head], lazy[0])
        assert (lazy[0] - start[0][head]).norm() > 100 * (weight[head] - start[0][head]).norm()


def test_lars_length_does_not_depend_on_the_gradient_s():
    weight = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    for size in (1.0, 1000.0):
        step = lars_(weight, torch.full((1, 4, 3), size), torch.zeros(1, 1, 1))
        torch.testing.assert_close(step.norm(), 0.001 * weight.norm())


@pytest.mark.parametrize("lars", [False, True])
def test_heads_in_blocks_step_as_alone(lars):
    start, grads = problem(6, seed=2)
    together = ours(start, grads, lars=lars)
    params = [p.clone() for p in start]
    blocks = HeadOptimizer(params, RATES, DECAYS, lars=lars, momentum=0.9, nesterov=False)
    for step, pair in enumerate(grads):
        for block in (slice(2, 3), slice(0, 2)):
            blocks.step([g[block].clone() for g in pair], FACTORS[step % 2], block)
    for mine, other in zip(params, together, strict=True):
        assert torch.equal(mine, other)
    for head in range(3):
        one = slice(head, head + 1)
        alone = ours(
            [p[one] for p in start],
            [[g[one] for g in pair] for pair in grads],
            RATES[one],
            DECAYS[one],
            lars,
        )
        for mine, other in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[one], other)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torch(nesterov):
    start, grads = problem(10, seed=3)
    found = ours(start, grads, lars=False, nesterov=nesterov)
    for head, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        wanted = theirs(
            lambda p, decay=decay: torch.optim.SGD(
                p, 1.0, momentum=0.9, weight_decay=decay, nesterov=nesterov
            ),
            start,
            grads,
            head,
            rate,
        )
        for mine, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine[head], other)


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
