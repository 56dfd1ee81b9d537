"""One job in several processes, as torchrun starts them: who I am, what we share, batch norm over all of us."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from siambench.device import pick_device
from siambench.errors import EXIT_USER, UserError, first_line
from siambench.progress import quieted

T = TypeVar("T")
_TIMEOUT = timedelta(
    minutes=30
)  # for one process at work while the others wait, e.g. listing files
_LOST = re.compile(r"gloo/transport|Connection (closed|reset) by peer|NCCL")  # plain RuntimeErrors
_SYNC_BUFFERS = (  # renamed in torch 2.15
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True)
class World:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: of this process, 0 … size - 1.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    def from_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in process 0, in every process; only process 0 does it.

        Raises:
            UserError: ``work`` raised it, in process 0.
            SystemExit: in the others, silently: process 0 says what is wrong.
        """
        if self.size == 1:
            return work()
        parcel: list[Any] = [None, False]
        problem: UserError | None = None
        if self.rank == 0:
            try:
                parcel = [work(), True]
            except UserError as error:
                problem = error
        dist.broadcast_object_list(parcel, device=torch.device("cpu"))
        if problem is not None:
            raise problem
        if not parcel[1]:
            raise SystemExit(EXIT_USER)
        return parcel[0]  # type: ignore[no-any-return]

    def problem(self, text: str) -> BaseException:
        """What to raise for a problem that every process sees: a UserError in the first, silence else."""
        return SystemExit(EXIT_USER) if self.rank else UserError(text)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process. A few bytes between hosts: a GPU does not wait."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` (any shape, the same in all processes) over the processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` (any shape, the same in all processes) over the processes."""
        return values if self.size == 1 else self.sum(values) / self.size

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, in the order of their ranks, in every process.

        Args:
            rows: (counts[rank], D) of this process.
            counts: rows of each process; the same in all.

        Returns:
            (sum(counts), D).
        """
        if self.size == 1:
            return rows
        padded = nn.functional.pad(rows, (0, 0, 0, max(counts) - len(rows)))
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def collect(self, value: T) -> list[T]:
        """What every process has, in the order of their ranks; in the first process, in others nothing.

        Args:
            value: can be pickled.
        """
        if self.size == 1:
            return [value]
        parts: list[Any] | None = None if self.rank else [None] * self.size
        dist.gather_object(value, parts)
        return parts or []

    def parallel(self, model: nn.Module, *, static: bool = True) -> nn.Module:
        """``model`` with gradients averaged over the processes; itself if there is one process.

        Args:
            model: with :func:`sync_batchnorm` applied, since its buffers are not broadcast.
            static: the same parameters get gradients in every step, one backward pass a step.
        """
        if self.size == 1:
            return model
        cuda = self.device.type == "cuda"
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if cuda else None,
            gradient_as_bucket_view=True,
            static_graph=static,
            **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
        )


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world of this process: torchrun's, or itself alone; NCCL between GPUs, gloo between CPUs.

    Processes other than the first are quiet. On a GPU machine each process takes the GPU of its
    local rank.

    Args:
        device: as :func:`siambench.device.pick_device`.

    Raises:
        UserError: the device is not there, or another process of the job is lost.
    """
    here = pick_device(device)
    size, rank, local_rank = (_told(n) for n in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if size is None or size == 1:
        if here.type == "cuda":
            torch.cuda.set_device(here.index or 0)  # whose streams are the current ones from now on
        yield World(0, 1, here)
        return
    if rank is None or local_rank is None:
        raise UserError("WORLD_SIZE is set, RANK or LOCAL_RANK is not; start with torchrun")
    if here.type == "cuda":
        here = pick_device(f"cuda:{local_rank}")
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {rank} of {size} cannot join: {first_line(error)}") from error
    try:
        with quieted(rank != 0):
            yield World(rank, size, here)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        raise UserError(
            f"process {rank} of {size} lost another one ({first_line(error)}); the first error that "
            "any process printed says why"
        ) from error
    finally:
        dist.destroy_process_group()


def _told(name: str) -> int | None:
    """The number that torchrun put into the environment."""
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"{name} is {text!r} in the environment; torchrun sets it to a number")
    return None if text is None else int(text)


def local_size() -> int:
    """Processes of this job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def sync_batchnorm(model: nn.Module, world: World) -> nn.Module:
    """Make every batch norm of ``model`` take its statistics over all processes; same names, in place.

    On GPUs torch's SyncBatchNorm, whose forward pass makes the host wait for the GPU in each layer; it
    has no CPU version, so there :class:`SyncBatchNorm`. The processes may hold unequally many values.
    """
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = SyncBatchNorm  # type: ignore[assignment]
    return model


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, of any sizes, on any device and backend."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, …) of this process to the same shape and type."""
        if not self.training:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
            out, mean, var, count = _Standardise.apply(x, self.eps)
            if self.weight is not None:
                shape = [1, -1] + [1] * (x.dim() - 2)
                out = out * self.weight.view(shape) + self.bias.view(shape)
        if self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / (count - 1)).to(var), self.momentum)
        return out.to(input.dtype)


class _Standardise(torch.autograd.Function):
    """Values less their mean, over their standard deviation, both over all processes.

    Sum and number of values, then the sum of squares about the mean (two passes do not cancel), in
    double precision: the processes' sums are those of one, but for the last digit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From (N, C, …): the same shape, mean (C,), variance (C,), number of values of a channel (1,)."""
        over = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        sums = x.sum(over, dtype=torch.float64)
        sums = _summed(torch.cat((sums, sums.new_full((1,), x.numel() / x.shape[1]))))
        count = sums[-1:]
        mean = (sums[:-1] / count).to(x)
        out = x - mean.view(shape)
        var = _summed(out.square().sum(over, dtype=torch.float64)) / count
        inverse = torch.rsqrt(var + eps).to(x).view(shape)
        out *= inverse
        ctx.over, ctx.shape = over, shape
        ctx.save_for_backward(out, inverse, count)
        var = var.to(x)
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of the sum of all processes' losses (Ioffe and Szegedy 2015, section 3)."""
        gradient = gradients[0]
        out, inverse, count = ctx.saved_tensors
        sums = [g.sum(ctx.over, dtype=torch.float64) for g in (gradient, gradient * out)]
        of_mean, of_size = (_summed(torch.stack(sums)) / count).to(gradient)
        gradient = gradient - of_mean.view(ctx.shape) - out * of_size.view(ctx.shape)
        return gradient * inverse, None


def _summed(values: Tensor) -> Tensor:
    """The sum of ``values`` over the processes, in place."""
    dist.all_reduce(values)
    return values
