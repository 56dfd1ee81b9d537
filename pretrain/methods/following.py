"""A second network that follows the trained one: momentum encoders, and targets copied now and then."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def follower(module: M) -> M:
    """A copy of ``module`` that no gradient reaches."""
    return deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """Parameters: ``momentum`` of the follower's and the rest of the leader's.

    Buffers (statistics of batch norms) are left alone: a follower makes its own in its forward passes.
    """
    theirs = [p.detach() for p in leader.parameters()]
    torch._foreach_lerp_(list(follower.parameters()), theirs, 1 - momentum)  # type: ignore[attr-defined]
