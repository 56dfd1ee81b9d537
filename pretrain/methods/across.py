"""What losses share between processes: rows of all, sums over all, with gradients that are those of one.

Each process has its part of the batch and computes its part of the loss; the gradients are averaged
afterwards (DistributedDataParallel). So that the average is the gradient of the whole batch's loss, what a
process receives from others hands their gradients back to them, summed.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """How many take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if dist.is_initialized() else 0


def everyones(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all processes (P·N, ...), in the order of their ranks, with gradients."""
    return rows if processes() == 1 else _Gather.apply(rows)  # type: ignore[no-any-return]


def total(values: Tensor) -> Tensor:
    """The sum of ``values`` over the processes, with gradients."""
    return values if processes() == 1 else _Sum.apply(values)  # type: ignore[no-any-return]


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Make the floating buffers of ``module`` their mean over the processes, in one message."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if processes() == 1 or not buffers:
        return
    flat = torch.cat([b.flatten() for b in buffers])
    dist.all_reduce(flat)
    flat /= processes()
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(processes())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient
