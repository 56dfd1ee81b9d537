"""The optimisers: SGD, and LARS for the large batches of SimSiam's relatives."""

from collections.abc import Callable
from typing import Any

import torch

from pretrain.config import PretrainConfig
from pretrain.methods import Method

TRUST = 0.001  # of all the methods here that use LARS: eta in BYOL's and Barlow Twins' code, EETA in SimCLR's


class Lars(torch.optim.Optimizer):
    """SGD with momentum on gradients scaled to TRUST |w| / |g + wd w| (You et al. 2017, arXiv 1708.03888).

    The rate multiplies the momentum's buffer, as in torch's SGD (google-deepmind/deepmind-research,
    byol/utils/optimizers.py; facebookresearch/barlowtwins, main.py); SimCLR's multiplies the gradient before
    it enters (google-research/simclr, lars_optimizer.py), which differs only while the rate changes. Where
    w or g is all zeros, g passes unscaled. A group with ``lars`` False is not scaled at all.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, weight_decay: float
    ):
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lars": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, of all parameters that have a gradient, in a few launches a group."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            if group["weight_decay"]:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            if group["lars"]:
                w, g = (torch.stack(torch._foreach_norm(x)) for x in (params, grads))
                scale = torch.where((w > 0) & (g > 0), TRUST * w / g, 1.0)
                grads = torch._foreach_mul(grads, list(scale.unbind()))
            buffers = [self._buffer(p) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]  # type: ignore[no-any-return]


def build_optimizer(method: Method, config: PretrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimiser of the method's groups; with ``exclude_1d`` each is two, vectors in the second."""
    groups = method.param_groups()
    if config.exclude_1d:
        groups = [part for group in groups for part in _apart(group)]
    if config.optimizer == "lars":
        return Lars(groups, lr, config.momentum, config.weight_decay)
    return torch.optim.SGD(
        groups, lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )


def _apart(group: dict[str, Any]) -> list[dict[str, Any]]:
    matrices = [p for p in group["params"] if p.ndim > 1]
    vectors = [p for p in group["params"] if p.ndim <= 1]
    parts = [
        {**group, "params": matrices},
        {**group, "params": vectors, "weight_decay": 0.0, "lars": False},
    ]
    return [part for part in parts if part["params"]]
