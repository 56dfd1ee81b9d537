"""What may stand in a pickle beside plain data, and the inert objects that take its place.

Nothing a pickle names is ever imported: each name below stands for an object of this file, so the
library that wrote the checkpoint need not be installed and none of its code runs.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class Refused(Exception):
    """A pickle does what no checkpoint needs. The text goes on from "its pickle ..."."""


class DType:
    """``numpy.dtype``: a name, and a byte order when BUILD brings one."""

    name, order = "", "<"

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name.lstrip("<>=|"), ">" if name.startswith(">") else "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


class Array:
    """A pickled numpy array; ``array`` is None until filled, and where it is not of numbers."""

    array: np.ndarray | None = None

    def __init__(self, *content: Any) -> None:
        if content:
            self.fill(*content)

    def fill(self, shape: Any, dtype: Any, data: Any, fortran: bool = False) -> "Array":
        """Put ``data`` (bytes; str from Python 2) into the shape.

        Raises:
            TypeError, ValueError: they do not fit.
        """
        if not isinstance(dtype, DType):
            dtype = DType(dtype)
        if dtype.name not in _NUMBERS:
            return self
        kind = np.dtype(dtype.order + dtype.name)
        if isinstance(data, str):
            data = data.encode("latin1")
        flat = np.frombuffer(data, kind) if len(data) else np.empty(0, kind)
        array = flat.reshape(shape, order="F" if fortran else "C")
        self.array = array.astype(kind.newbyteorder("="), copy=not array.flags.writeable)
        return self

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.fill(shape, dtype, data, fortran)


class Inert:
    """Takes whatever a pickle gives it, and keeps and does nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(module: str, *names: str) -> dict[str, Any]:
    """A class of its own for each name: some are keys of dicts."""
    return {f"{module}.{name}": type(name, (Inert,), {"__slots__": ()}) for name in names}


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode``, by which protocol 2 stores bytes."""
    if encoding != "latin1":
        raise Refused(f"wants the encoding {encoding!r}")
    return text.encode("latin1")


_HISTORY = _inert("mmengine.logging.history_buffer", "HistoryBuffer")


def _getattr(owner: Any, name: Any) -> Inert:
    """``getattr(HistoryBuffer, "mean")``: mmengine pickles the methods of its buffers."""
    if not any(owner is known for known in _HISTORY.values()):
        raise Refused("wants builtins.getattr of more than mmengine's HistoryBuffer")
    return Inert()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A numpy number as Python's; anything else is left unfilled."""
    array = Array((), dtype, data).array
    return Array() if array is None else array.item()


def _dict(*_: Any) -> dict[Any, Any]:
    """A dict that is filled later; ``defaultdict`` passes its factory, which is dropped."""
    return {}


# numpy's names, in every version's place for them. The .pkl reader knows these and those of PLAIN.
NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    **{
        f"numpy.{core}.{name}": call
        for core in ("core", "_core")
        for name, call in (
            ("multiarray._reconstruct", lambda *_: Array()),
            ("multiarray.scalar", _scalar),
            (
                "numeric._frombuffer",
                lambda data, dtype, shape, order: Array(shape, dtype, data, order == "F"),
            ),
        )
    },
}
PLAIN: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",  # the empty one, in protocol 2
    "collections.OrderedDict": _dict,
}

# Names that torch's weights-only loading does not know, and whose checkpoints carry them.
TORCH: dict[str, Any] = {
    **NUMPY,  # schedulers' and loggers' numbers, in any trainer's
    "builtins.bytes": PLAIN["builtins.bytes"],
    **_inert("argparse", "Namespace"),  # DINO and other official trainers: args
    **_HISTORY,  # mmengine (mmselfsup, mmpretrain): message_hub
    "builtins.getattr": _getattr,
    # Lightning (solo-learn, lightly): hyper_parameters, and callbacks' states keyed by their classes
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    "lightning.pytorch.utilities.parsing.AttributeDict": dict,
    "lightning_lite.utilities.data.AttributeDict": dict,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "lightning.fabric.utilities.data.AttributeDict": dict,
    **_inert("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    **_inert("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
    # omegaconf (solo-learn, VISSL): the configuration
    **_inert("omegaconf.dictconfig", "DictConfig"),
    **_inert("omegaconf.listconfig", "ListConfig"),
    **_inert("omegaconf.base", "ContainerMetadata", "Metadata", "UnionNode"),
    **_inert("omegaconf.nodes", "AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode"),
    **_inert("omegaconf.nodes", "BytesNode", "PathNode", "InterpolationResultNode"),
    **_inert("typing", "Any"),
    **_inert("builtins", "int", "float", "str", "bool", "list", "dict", "tuple"),
    "collections.defaultdict": _dict,
    "vissl.config.attr_dict.AttrDict": dict,  # VISSL: config
    "vissl.utils.hydra_config.AttrDict": dict,
    # settings of other trainers: dicts with attributes beside their items
    "yacs.config.CfgNode": OrderedDict,
    "fvcore.common.config.CfgNode": OrderedDict,
    "easydict.EasyDict": OrderedDict,
    "addict.addict.Dict": OrderedDict,
    "mmcv.utils.config.ConfigDict": OrderedDict,
    "mmengine.config.config.ConfigDict": OrderedDict,
    **_inert("types", "SimpleNamespace"),
    **_inert("datetime", "date", "datetime", "time", "timedelta", "timezone"),
    # folders and versions among anyone's settings
    **_inert("pathlib", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
    **_inert("pathlib._local", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
    **_inert("torch.torch_version", "TorchVersion"),
}
