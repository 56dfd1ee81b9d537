"""Weights by name through the libraries that publish them: ``timm:``, ``torchvision:``, ``hf-hub:``.

The libraries say what there is, where it lies and how its input is normalised, and keep what is
downloaded in their own caches. The file itself is then read like any other checkpoint: none of them
unpickles it. A network that has torchvision's names and computes something else is refused before its
weights are fetched.
"""

import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siambench.checkpoints.hugging_face import TIMEOUT, library, open_repository
from siambench.checkpoints.leaves import flatten
from siambench.checkpoints.recognise import closest, faults, find_resnets
from siambench.checkpoints.same import same_features
from siambench.errors import UserError, first_line
from siambench.files import sha256_file
from siambench.progress import say
from siambench.resnet import ARCHS, build_resnet

Three = tuple[float, float, float]

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^@/]+))?(?:/(.+))?")

# Settings of transformers' ResNets that no weight shows, as torchvision has them
# (models/resnet/configuration_resnet.py).
_TRANSFORMERS = {
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "hidden_act": "relu",
}
# timm's arguments of a model that change shapes or nothing of what a trained backbone computes.
_TIMM = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "zero_init_last"}


@dataclass(frozen=True)
class Fetched:
    """What a hub gave.

    Attributes:
        uri: as given, made exact where the hub resolved it, e.g. ``torchvision:resnet50.IMAGENET1K_V1``.
        file: in the library's cache, to be read like any other checkpoint.
        method: pre-training method as a table prints it; ``""`` when the hub does not tell.
        mean, std: the input's RGB statistics in [0, 1]; None when the hub does not tell.
        notes: what else the user should know.
    """

    uri: str
    file: Path
    method: str = ""
    mean: Three | None = None
    std: Three | None = None
    notes: tuple[str, ...] = ()


def fetch(uri: str) -> Fetched:
    """Fetch weights by name.

    Args:
        uri: one of

            - ``torchvision:ARCH[.WEIGHTS]``, e.g. ``torchvision:resnet50.IMAGENET1K_V2``. Without
              WEIGHTS it is ``IMAGENET1K_V1``, the recipe that published tables mean by "supervised";
              torchvision's own default is a newer one.
            - ``timm:ARCH[.TAG]``, e.g. ``timm:resnet50.a1_in1k``; without TAG timm's default.
            - ``hf-hub:USER/REPO[@REVISION][/FILE]``; without FILE ``model.safetensors``, else
              ``pytorch_model.bin``, else the only file of weights in the repository.

    Returns:
        The file in the library's cache, and what the library says of it.

    Raises:
        UserError: the library is missing, knows no such name, cannot be reached, or the network
            computes something else than torchvision's ResNet.
    """
    scheme, _, name = uri.partition(":")
    return SCHEMES[scheme](name)


def _torchvision(name: str) -> Fetched:
    from torchvision import models

    uri = f"torchvision:{name}"
    arch, _, tag = name.partition(".")
    plain = [known for known in ARCHS if known in models.list_models(module=models)]
    if arch not in plain:
        raise UserError(f"{uri}: {arch!r} is no plain ResNet of torchvision's: {', '.join(plain)}")
    members = models.get_model_weights(arch).__members__
    if tag and tag not in members:
        raise UserError(f"{uri}: {arch} has no weights {tag!r}; it has {', '.join(members)}")
    weights = members[tag or "IMAGENET1K_V1"]
    note = f"{weights.name} taken, the recipe that published tables mean by supervised"
    if others := {w.name for w in members.values()} - {weights.name}:
        note += f"; also there: {', '.join(sorted(others))}"
    uri = f"torchvision:{arch}.{weights.name}"
    mean, std = _statistics(weights.transforms().mean, weights.transforms().std)
    return Fetched(
        uri=uri,
        file=_download(uri, weights.url),
        method=f"supervised ({weights.name})",
        mean=mean,
        std=std,
        notes=() if tag else (note,),
    )


def published(path: Path) -> bool:
    """Whether a file has the SHA-256 whose first digits torch.hub's convention puts into its name."""
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return digits is None or sha256_file(path).startswith(digits[1])


def _download(uri: str, url: str) -> Path:
    """The file at ``url``, in torch.hub's cache; its name ends in the first digits of its SHA-256."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        if not published(path):
            raise UserError(
                f"{uri}: {path} in torch's cache is not the file that torchvision publishes (its SHA-256 "
                "differs); delete it, or name it as a file"
            )
        return path
    say(f"{uri}: downloading {url}")
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub has none of its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), digits[1] if digits else None, progress=sys.stderr.isatty()
        )
    except Exception as error:  # whatever urllib raises, or a digest that differs
        raise UserError(
            f"{uri}: {url} cannot be fetched ({first_line(error)}); check the connection, or put the "
            f"file at {path}"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return path


def _timm(name: str) -> Fetched:
    uri = f"timm:{name}"
    timm = library("timm", uri)
    arch, _, tag = name.partition(".")
    if not timm.models.is_model_in_modules(arch, ["resnet"]):
        what = f"not among timm's ResNets ({timm.__version__}, timm/models/resnet.py)"
        plain = ", ".join(known for known in ARCHS if timm.is_model(known))
        raise UserError(f"{uri}: {arch!r} is {what}; plain ones are {plain}")
    _same_network(uri, timm, arch)
    known = timm.list_models(f"{arch}.*", pretrained=True)
    if tag and name not in known:
        tags = ", ".join(full.partition(".")[2] for full in known) or "none"
        raise UserError(f"{uri}: {arch} has no weights {tag!r} in timm; it has {tags}")
    with torch.device("meta"):
        told = timm.create_model(name, num_classes=0).pretrained_cfg
    if not told.get("hf_hub_id"):
        raise UserError(f"{uri}: timm publishes no weights for {arch} on the Hugging Face Hub")
    exact = f"timm:{told['architecture']}.{told['tag']}"
    repository = open_repository(exact, told["hf_hub_id"], "")
    file = repository.weights("")
    mean, std = _statistics(told.get("mean"), told.get("std"))
    return Fetched(
        uri=exact,
        file=repository.get(file),
        method=f"timm {told['tag']}",
        mean=mean,
        std=std,
        notes=(f"{exact} is {repository.name}@{repository.commit}, {file}", *repository.notes),
    )


def _same_network(uri: str, timm: Any, arch: str) -> None:
    """Refuse what torchvision's ResNet does not compute, without any download.

    Names and shapes come first, on no memory at all. They do not tell all: resnetblur50 and
    resnetaa50 have torchvision's and low-pass filters between. So both networks get the same random
    weights and images (odd and even sizes, which paddings treat differently), and their features must
    be the same in float64, where an epsilon of 1e-6 in place of 1e-5 shows.
    """
    no = f"{uri}: torchvision's ResNet does not compute what timm's {arch} does"
    with torch.device("meta"):
        shapes = timm.create_model(arch, num_classes=0).state_dict()
    found = closest(find_resnets(flatten(uri, shapes)))
    if not found.whole:
        raise UserError(f"{no}: closest is {found.arch}, but {faults(found)}")
    theirs = timm.create_model(arch, num_classes=0)
    if not same_features(theirs, build_resnet(found.arch)):
        raise UserError(f"{no}: named and shaped like {found.arch}, it gives other features")


def _hf_hub(name: str) -> Fetched:
    uri = f"hf-hub:{name}"
    match = _REPOSITORY.fullmatch(name)
    if not match:
        raise UserError(f"{uri}: write hf-hub:USER/REPO, with @REVISION, /FILE or both behind it")
    repository = open_repository(uri, match[1], match[2] or "")
    file = repository.weights(match[3] or "")
    config, processor = (
        repository.settings(file, name) for name in ("config.json", "preprocessor_config.json")
    )
    _same_settings(uri, config)
    told = config.get("pretrained_cfg") or config  # timm's before 0.8 had no such part
    mean, std = _statistics(told.get("mean"), told.get("std"))
    if mean is None:
        mean, std = _statistics(processor.get("image_mean"), processor.get("image_std"))
    notes = [f"weights from {file}", *repository.notes]
    if mean is None:
        notes.append("how its input is normalised is not said there: ImageNet's usual is assumed")
    return Fetched(
        uri=f"hf-hub:{match[1]}@{repository.commit}" + (f"/{file}" if match[3] else ""),
        file=repository.get(file),
        mean=mean,
        std=std,
        notes=tuple(notes),
    )


def _same_settings(uri: str, config: dict[str, Any]) -> None:
    """Refuse a ``config.json`` of transformers or timm whose network is not torchvision's ResNet."""
    no = "torchvision's ResNet does not compute what config.json describes"
    for key, value in _TRANSFORMERS.items():
        if config.get(key, value) != value:
            raise UserError(f"{uri}: {no}: {key} is {config[key]!r}, not {value!r}")
    if "architecture" in config and ("pretrained_cfg" in config or "mean" in config):
        arch, changed = config["architecture"], set(config.get("model_args") or {}) - _TIMM
        if arch not in ARCHS or changed:
            more = f" with {', '.join(sorted(changed))} changed" if changed else ""
            raise UserError(f"{uri}: {no}: timm's {arch}{more}; plain are {', '.join(ARCHS)}")


def _statistics(mean: Any, std: Any) -> tuple[Three, Three] | tuple[None, None]:
    """Mean and standard deviation if both are three numbers in [0, 1], as images have them."""
    for values, least in ((mean, 0.0), (std, 1e-9)):
        if not isinstance(values, list | tuple) or len(values) != 3:
            return None, None
        if not all(isinstance(value, int | float) and least <= value <= 1 for value in values):
            return None, None
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


SCHEMES = {"timm": _timm, "torchvision": _torchvision, "hf-hub": _hf_hub}
