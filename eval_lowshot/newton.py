"""Thousands of linear SVMs at once: Newton's method over all of them, one matrix product a step.

The problem of a row with labels y in {1, -1} (0: the image is not in it), cost C and weights s (2 for
a positive, 1 for a negative) is LinearSVC's primal, the intercept being the weight of a constant feature:

    f(w) = ½‖w‖² + C Σ sᵢ max(0, 1 - yᵢ zᵢ·w)²

f is quadratic wherever the images with a positive hinge, those that hold the solution, stay the same, so
that a Newton step is a linear system. Conjugate gradients solve it for all rows together: where the
features are uncorrelated, as ``eval_lowshot.eigenbasis`` makes them, the Hessian I + 2C Σ sᵢ zᵢ zᵢᵀ is
close to its diagonal, which therefore is nearly a perfect preconditioner. Large costs are held by few
images, and ``eval_lowshot.support`` solves the same system exactly. Costs are taken from small to large,
each starting from the solution before.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eval_lowshot.rows import STILL, Rows
from eval_lowshot.support import Gram, support_is_faster, support_newton

TOLERANCE = 1e-9  # estimated distance to the least objective, relative to ½‖w‖²
_FORCING = 0.1  # a step's system is solved to a tenth, in the preconditioner's norm
_MOST_STEPS = 100
_MOST_INNER = 500
_ROWS = 128  # from which on a matrix product is efficient
_EASY = 200.0  # cost x images up to which a few steps lead from 0 to the solution


def solve(
    z: Tensor, moments: Tensor, y: Tensor, costs: Sequence[float], gram: Gram | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Weights of every row for every cost.

    Args:
        z: (n, r) features.
        moments: (r,), their mean squares; the features should be nearly uncorrelated.
        y: (P, n) of 1, -1 and 0 (left out); each row has both a 1 and a -1.
        costs: values of C.
        gram: products of the images with each other, where they fit into memory.

    Yields:
        Indices into ``costs``, and the weights of each: (indices, P, r).
    """
    order = sorted(range(len(costs)), key=lambda index: costs[index])
    # A large first cost is approached by others, tenfold each time, which are not asked for.
    least, approach = costs[order[0]], [_EASY / len(z)]
    while approach[-1] < least:
        approach.append(10 * approach[-1])
    path = [*costs, *approach[:-1]]
    order = [*range(len(costs), len(path)), *order]
    last = Rows.at_zero(z, y)
    inner = 0.0
    for chosen in _groups(order, path, len(z), len(y)):
        now = last.with_costs([path[index] for index in chosen])
        expected = inner * float(now.cost[-1] / last.cost[-1]) ** 0.5
        exact = gram is not None and inner > 0 and support_is_faster(now, expected)
        solved = exact and support_newton(now, gram)  # type: ignore[arg-type]
        inner = expected if solved else newton_cg(now, moments)
        last = now.take(slice(-len(y), None))
        if chosen[0] < len(costs):
            yield chosen, now.w.unflatten(0, (len(chosen), -1))


def _groups(
    order: Sequence[int], costs: Sequence[float], images: int, rows: int
) -> Iterator[list[int]]:
    """The costs to solve together: small ones, as many as make a product efficient; others alone."""
    group: list[int] = []
    for index in order:
        easy = costs[index] * images <= _EASY
        if group and (not easy or len(group) * rows >= _ROWS):
            yield group
            group = []
        group.append(index)
    yield group


def newton_cg(rows: Rows, moments: Tensor) -> int:
    """Solve all rows in place; one that is solved leaves the others.

    Returns:
        Steps of conjugate gradients.
    """
    left = torch.arange(len(rows.cost), device=rows.z.device)
    now, inner = rows, 0
    hinge = now.hinge()
    moved = torch.ones_like(left, dtype=torch.bool)
    for _ in range(_MOST_STEPS):
        active = now.s * (hinge > 0)
        size, gradient = now.w.square().sum(1), now.w - 2 * now.cost * now.pull
        diagonal = 1 + 2 * now.cost * active.sum(1, keepdim=True) * moments
        going = moved & ((gradient.square() / diagonal).sum(1) >= TOLERANCE * size)
        if not going.all():
            rows.put(left, now)
            left = left[going]
            if not len(left):
                return inner
            now = rows.take(left)
            parts = (active, gradient, diagonal, size)
            active, gradient, diagonal, size = (part[going] for part in parts)
        step, margin, residual, steps = _conjugate_gradients(now, active, gradient, diagonal, size)
        t = now.move(step, margin)
        inner += steps
        moved = step.square().sum(1) > STILL * now.w.square().sum(1)
        hinge = now.hinge()
        # Where the same images hold, the model was exact, and its gradient is the true one; but many
        # iterations have gathered rounding.
        now.pull = (now.w - (1 - t) * gradient + t * residual) / (2 * now.cost)
        other = ((hinge > 0) != (active > 0)).any(1) | (now.cost.squeeze(1) * len(now.z) > _EASY)
        now.pull[other] = (now.s[other] * now.y[other] * hinge[other]) @ now.z
    rows.put(left, now)
    return inner


def _conjugate_gradients(
    rows: Rows, active: Tensor, gradient: Tensor, diagonal: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The Newton step, what it does to the margins, what it leaves of the gradient, and iterations."""
    z, weight = rows.z, 2 * rows.cost * active
    residual = -gradient
    p = residual / diagonal
    product = (residual * p).sum(1, keepdim=True)
    enough = torch.maximum(_FORCING**2 * product, 0.02 * TOLERANCE * size.unsqueeze(1))
    step, margin = torch.zeros_like(p), torch.zeros_like(rows.margin)
    for count in range(1, _MOST_INNER + 1):  # noqa: B007
        q = p @ z.mT
        bent = p + (weight * q) @ z
        length = product / (p * bent).sum(1, keepdim=True).clamp_(min=1e-30)
        step += length * p
        margin += length * q
        residual -= length * bent
        direction = residual / diagonal
        after = (residual * direction).sum(1, keepdim=True)
        if (after <= enough).all():
            break
        p = direction + (after / product.clamp(min=1e-38)) * p
        product = after
    return step, margin, residual, count
