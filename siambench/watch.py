"""Losses looked at now and then, since a host that waits for its GPU in every iteration slows it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from siambench.distributed import World
from siambench.errors import Diverged


class Watch:
    """The last losses, over all processes, or the first that were not finite; on the device.

    Args:
        world: the processes; all see the same losses, and so all raise.
        device: where the losses are.
        verb: what trains, for the message.
        advice: what to change, for the message.
    """

    def __init__(self, world: World, device: torch.device, verb: str, advice: str) -> None:
        self.world, self.verb, self.advice = world, verb, advice
        self.names: list[str] = []
        self.values = torch.zeros((), device=device)
        self.bad = torch.zeros(1, device=device)  # iterations since then, with the first

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """One iteration's losses in this process. The host does not wait."""
        self.names = list(losses)
        latest = self.world.mean(torch.stack([value.detach() for value in losses.values()]))
        self.values = torch.where(self.values.isfinite().all(), latest, self.values)
        self.bad += ~self.values.isfinite().all()

    def look(self, done: int) -> dict[str, float]:
        """The losses after ``done`` iterations. The host waits.

        Raises:
            Diverged: a loss was not finite in an iteration since the last look.
        """
        *values, bad = torch.cat((self.values, self.bad)).tolist()
        losses = dict(zip(self.names, values, strict=True))
        if bad:
            parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
            self._diverged(f"the loss is not finite at iteration {done + 1 - int(bad)} ({parts})")
        return losses

    def check(self, model: nn.Module, done: int) -> None:
        """Look at the weights and statistics, whose own losses the next iteration would show.

        Raises:
            Diverged: one is not finite.
        """
        if not _finite(model.state_dict().values()):
            self._diverged(f"the weights are not finite after iteration {done}")

    def _diverged(self, what: str) -> None:
        raise Diverged(f"{self.verb}: {what}; {self.advice}")


def _finite(tensors: Iterable[Tensor]) -> bool:
    sums = [tensor.sum() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(sums).isfinite().all())
