"""The heads of a probe, trained in one pass over the features, with checkpoints."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eval_linear.config import LinearConfig
from eval_linear.heads import Heads
from eval_linear.losses import totals
from eval_linear.optim import HeadOptimizer, schedule_factor
from eval_linear.roads import Cached, Online
from siambench.backbone import sort_header
from siambench.distributed import World
from siambench.errors import first_line
from siambench.evaluation import Job
from siambench.features import LayerFeatures
from siambench.files import atomic_path
from siambench.progress import bar, say
from siambench.signals import stop_requests, stop_saved

HEAD_FORMAT, HEAD_VERSION = "siambench-linear-head", "1"
_CHECKPOINT_EVERY = {"online": 0.0, "cached": 30.0}  # seconds, at the end of an epoch


class Probe:
    """The heads of every layer, with their optimisers.

    With several settings (learning rate, weight decay) there are two heads per setting: the first
    learns from every training image and is the one to report, the second from all but the held-out
    ones and is the one to choose by. Heads do not influence each other.

    Attributes:
        layers: layer names.
        heads: one :class:`Heads` per layer; head s has setting s, head settings + s its choosing twin.
    """

    def __init__(
        self, encoder: LayerFeatures, classes: int, config: LinearConfig, job: Job
    ) -> None:
        scale = config.batch_size / 256
        settings = config.settings * (2 if len(config.settings) > 1 else 1)
        rates, decays = [rate * scale for rate, _ in settings], [decay for _, decay in settings]
        self.layers, self.dims = encoder.layers, encoder.dims
        self.heads = [
            Heads(
                dim,
                classes,
                len(rates),
                channels=channels if config.batch_norm else 0,
                seed=job.seed,
                device=job.device,
            )
            for dim, channels in zip(encoder.dims, encoder.channels, strict=True)
        ]
        self.optimizers = [
            HeadOptimizer(
                [heads.weight, heads.bias],
                rates,
                decays,
                lars=config.optimizer == "lars",
                momentum=config.momentum,
                nesterov=config.nesterov,
            )
            for heads in self.heads
        ]

    def step(self, features: Tensor, labels: Tensor, weight: Tensor, factor: float) -> Tensor:
        """One training step of all heads; returns the losses (layers, heads)."""
        losses = []
        for heads, optimizer, rows in zip(
            self.heads, self.optimizers, self.split(features), strict=True
        ):
            of_layer = []
            for block, loss, grads in heads.gradients(rows, labels, weight):
                optimizer.step(grads, factor, block)
                of_layer.append(loss)
            losses.append(torch.cat(of_layer))
        return torch.stack(losses)

    def split(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (N, D) of all layers as one tensor per layer."""
        return features.split(self.dims, 1)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name, not copied."""
        tensors = {}
        for layer, heads, optimizer in zip(self.layers, self.heads, self.optimizers, strict=True):
            tensors |= {f"{layer}.{name}": tensor for name, tensor in heads.state().items()}
            for number, momentum in enumerate(optimizer.momenta):
                tensors[f"{layer}.momentum{number}"] = momentum
        return tensors

    def save(self, path: Path, epochs: int, batches: int = 0) -> None:
        """Write a checkpoint after ``epochs`` epochs and ``batches`` of the next, atomically."""
        tensors = {name: tensor.cpu() for name, tensor in self.state().items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"done": json.dumps([epochs, batches])})

    def load(self, path: Path, world: World) -> tuple[int, int]:
        """Read a checkpoint if the first process has one; the epochs it has behind it, and batches."""
        done, tensors = world.from_first(lambda: _read(path))
        for name, tensor in self.state().items() if tensors else ():
            tensor.copy_(tensors[name])
        return done


def _read(path: Path) -> tuple[tuple[int, int], dict[str, Tensor]]:
    if not path.exists():
        return (0, 0), {}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            epochs, batches = json.loads(file.metadata()["done"])
            return (int(epochs), int(batches)), tensors
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        say(f"{path} is damaged ({first_line(error)}); training starts anew")
        return (0, 0), {}


def train(
    probe: Probe,
    road: Online | Cached,
    labels: np.ndarray,
    held_out: np.ndarray,
    config: LinearConfig,
    job: Job,
) -> None:
    """Train ``probe`` for all epochs, going on from its checkpoint if there is one.

    Args:
        probe: the heads.
        road: where features come from.
        labels: of the training split (n,).
        held_out: True for images that the choosing heads may not learn from (n,).
        config: the protocol.
        job: seed, device, folder and processes, each of which takes the same steps.

    Raises:
        UserError: all heads of a layer diverged; said at the end of the epoch.
    """
    checkpoint = job.folder / "checkpoint.safetensors"
    done, skip = probe.load(checkpoint, job.world)
    saved = time.monotonic()
    if done or skip:
        within = f" and {skip} batches" if skip else ""
        say(f"{job.title}: going on after epoch {done}{within} of {config.epochs}")
    y = torch.from_numpy(labels).to(job.device)
    weight = torch.from_numpy(_image_weights(held_out, len(config.settings))).to(job.device)
    batches = epoch_batches(len(labels), config, job.seed, 0)
    total, behind = config.epochs * len(batches), done * len(batches) + skip
    with stop_requests() as asked, bar(f"{job.title}: training", total, behind) as progress:
        for epoch in range(done, config.epochs):
            factor = schedule_factor(
                config.schedule, epoch, config.epochs, config.milestones, config.gamma
            )
            first = skip if epoch == done else 0
            batches = epoch_batches(len(labels), config, job.seed, epoch)[first:]
            rows = zip(batches, road.train(epoch, batches), strict=True)
            for number, (batch, features) in enumerate(rows, first + 1):
                index = torch.from_numpy(batch).to(job.device)
                part = weight[index]
                part = part / totals(part, y[index]).clamp(min=1)
                losses = probe.step(features, y[index], part, factor)
                # Waits for the device once an epoch. The least of a sweep's losses would say nothing.
                told = batch is batches[-1] and losses.shape[1] == 1
                progress.advance(1, **({"loss": losses.mean().item()} if told else {}))
                if job.world.any(bool(asked)):
                    if job.world.rank == 0:
                        ended = batch is batches[-1]
                        probe.save(checkpoint, epoch + ended, 0 if ended else number)
                    stop_saved(asked, job.world, f"{job.title}: epoch {epoch}, batch {number}")
            if not losses.isfinite().any(1).all():  # of a layer no head is left
                raise job.world.problem(diverged(config))
            due = time.monotonic() - saved >= _CHECKPOINT_EVERY[config.road]
            if due and job.world.rank == 0:
                probe.save(checkpoint, epoch + 1)
                saved = time.monotonic()


def diverged(config: LinearConfig) -> str:
    """What to say of a probe whose numbers are no longer finite."""
    return f"linear: training diverged with base_lr {config.base_lr}; lower it"


def _image_weights(held_out: np.ndarray, settings: int) -> np.ndarray:
    """What each image counts for each head, (n, heads): 1, or 0 if held out from it."""
    every = np.ones((len(held_out), settings), np.float32)
    return every if settings == 1 else np.hstack([every, every * ~held_out[:, None]])


def epoch_batches(count: int, config: LinearConfig, seed: int, epoch: int) -> list[np.ndarray]:
    """A random order of ``count`` image numbers in batches, the last one smaller.

    A single image left over is dropped when features are normalised over the batch.
    """
    order = np.random.default_rng([seed, 0, epoch]).permutation(count)
    batches = [order[i : i + config.batch_size] for i in range(0, count, config.batch_size)]
    if config.batch_norm and len(batches) > 1 and len(batches[-1]) == 1:
        batches.pop()
    return batches


def save_heads(
    path: Path, probe: Probe, chosen: Sequence[int], classes: Sequence[str], about: dict[str, str]
) -> None:
    """Write the chosen head of each layer as LAYER.weight (C, D) and LAYER.bias (C,), atomically.

    The norm, if there is one, is folded in. Metadata: format, class names and layers (JSON), and
    ``about``.
    """
    tensors = {}
    for layer, heads, head in zip(probe.layers, probe.heads, chosen, strict=True):
        weight, bias = heads.plain(head)
        tensors[f"{layer}.weight"] = weight.cpu().contiguous()
        tensors[f"{layer}.bias"] = bias.cpu().contiguous()
    metadata = {
        "format": HEAD_FORMAT,
        "format_version": HEAD_VERSION,
        "classes": json.dumps(list(classes)),
        "layers": json.dumps(probe.layers),
        **about,
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        sort_header(temporary)
