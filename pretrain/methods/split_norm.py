"""Batch norm over parts of a batch, whatever the number of processes: MoCo's GPUs without the GPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pretrain.methods.across import processes
from siambench.errors import UserError


class SplitBatchNorm(_NormBase):
    """Batch norm whose statistics are of each of ``groups`` equal parts of a process's batch, in its order.

    The running statistics are the mean of what each part alone would have made. No subclass of torch's
    batch norms, so that nothing makes it a synchronised one.
    """

    groups = 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        means, variances = (
            [running.clone() for _ in range(self.groups)]
            for running in (self.running_mean, self.running_var)
        )
        momentum = self.momentum or 0.0
        parts = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, momentum, self.eps)
            for part, mean, var in zip(x.chunk(self.groups), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
            self.num_batches_tracked.add_(1)
        return torch.cat(parts)


def split_batchnorm(module: nn.Module, groups: int, batch: int) -> None:
    """Make every batch norm of ``module`` one over parts, in place.

    Args:
        module: whose batch norms are meant.
        groups: parts of the whole batch, over all processes.
        batch: images of the whole batch that pass at once.

    Raises:
        UserError: the parts do not come out even.
    """
    if groups % processes() or batch % groups or batch == groups:
        raise UserError(
            f"--options.bn_groups is {groups}; it must be a multiple of the {processes()} processes and cut "
            f"the {batch} images that pass at once into equal parts of two or more"
        )
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.__class__ = SplitBatchNorm  # type: ignore[assignment]
            norm.groups = groups // processes()  # type: ignore[assignment]
