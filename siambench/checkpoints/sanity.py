"""What betrays a broken or untrained file without a single image: numbers about the weights alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from siambench.backbone import finite

_SAMPLE = 1 << 16  # numbers of a tensor that its statistics are taken from
_FEWEST = 512  # below this many, chance alone makes a trained tensor look drawn
_SIGMAS = 4.0


@dataclass(frozen=True)
class Sanity:
    """Counts over a backbone's tensors.

    Attributes:
        convolutions: how many there are (53 in a ResNet-50).
        as_initialised: those whose weights have the mean, spread and kurtosis of torchvision's or
            PyTorch's default initialisation.
        batch_norms: how many there are.
        never_updated: those whose running mean is 0 and running variance 1 throughout.
        all_zero: floating-point weights, convolutions' or batch norms', that are 0 throughout; zeroed
            last batch norms of a block are how pre-training starts.
        non_finite: tensors with NaN or infinity; a backbone with any is refused.
    """

    convolutions: int
    as_initialised: int
    batch_norms: int
    never_updated: int
    all_zero: int
    non_finite: int

    def warnings(self) -> list[str]:
        """One line for each number that a trained network does not have."""
        found = []
        if self.as_initialised > self.convolutions / 2:  # short trainings leave a good third
            found.append(
                f"{self.as_initialised} of {self.convolutions} convolutions look as they do before "
                "any training: is this the checkpoint you mean?"
            )
        if self.never_updated:
            found.append(
                f"{self.never_updated} of {self.batch_norms} batch norms never saw an image: running "
                "mean 0 and variance 1 are what they start with"
            )
        if self.all_zero:
            found.append(
                f"weight tensors that are all zero (dead, or never trained): {self.all_zero}"
            )
        return found

    def text(self) -> str:
        """The numbers in one line."""
        return (
            f"{self.as_initialised} of {self.convolutions} convolutions as initialised, "
            f"{self.never_updated} of {self.batch_norms} batch norms never updated, "
            f"{self.all_zero} all-zero, {self.non_finite} non-finite"
        )


def inspect(state: Mapping[str, Tensor]) -> Sanity:
    """The numbers of a state dict with torchvision's names."""
    convolutions = [t for t in state.values() if t.dim() == 4]
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    weights = [t for name, t in state.items() if name.endswith("weight")]
    return Sanity(
        convolutions=len(convolutions),
        as_initialised=sum(looks_initialised(tensor) for tensor in convolutions),
        batch_norms=len(norms),
        never_updated=sum(
            bool((state[f"{norm}running_mean"] == 0).all())
            and bool((state[f"{norm}running_var"] == 1).all())
            for norm in norms
        ),
        all_zero=sum(not tensor.any() for tensor in weights),
        non_finite=sum(not finite(tensor) for tensor in state.values()),
    )


def folded(state: Mapping[str, Tensor]) -> bool:
    """Whether all batch norms have mean 0 and variance 1 exactly, and scales that were trained."""
    neutral = {"running_mean": 0.0, "running_var": 1.0}
    for name, tensor in state.items():
        value = neutral.get(name.rpartition(".")[2])
        if value is not None and not bool((tensor == value).all()):
            return False
    scales = (t for name, t in state.items() if name.endswith("weight") and t.dim() == 1)
    return any(bool(((t != 1) & (t != 0)).any()) for t in scales)


def looks_initialised(weight: Tensor) -> bool:
    """Whether a convolution's weights (out, in, k, k) are indistinguishable from a fresh draw.

    Three draws are known: normal with standard deviation sqrt(2 / (out k k)) (He et al. 2015, as
    torchvision's and mmcv's ResNets start), the same by fan-in (``in`` for ``out``), and PyTorch's
    default for convolutions, uniform within ±1 / sqrt(in k k). Mean, spread and kurtosis of n numbers
    then lie within 4 standard errors of the draw's: 1/sqrt(n), 1/sqrt(2n) and sqrt(24/n) for a normal.
    """
    out, into, *kernel = weight.shape
    area = math.prod(kernel)
    x = weight.detach().reshape(-1)[:_SAMPLE].double()
    n = x.numel()
    if n < _FEWEST:
        return False
    mean, spread = float(x.mean()), float(x.std())
    if not (math.isfinite(spread) and spread > 0):
        return False
    kurtosis = float(((x - mean) / spread).pow(4).mean()) - 3
    normal, uniform = (abs(kurtosis - k) < _SIGMAS * math.sqrt(24 / n) for k in (0.0, -1.2))
    spreads = [math.sqrt(2 / (fan * area)) for fan in (out, into)] if normal else []
    spreads += [math.sqrt(1 / (3 * into * area))] if uniform else []
    return abs(mean) < _SIGMAS * spread / math.sqrt(n) and any(
        abs(spread / expected - 1) < _SIGMAS / math.sqrt(2 * n) for expected in spreads
    )
