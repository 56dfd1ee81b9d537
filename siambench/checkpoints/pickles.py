"""detectron2's ``.pkl`` files: pickles of dicts, lists, strings, numbers and numpy arrays, nothing else.

Reading never imports what a pickle names. The few names that pickled arrays need stand for inert
objects of this module, so that not even numpy sees a pickle's instructions.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from siambench.errors import UserError

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class _Refused(Exception):
    """The pickle named something that is not data."""


class _DType:
    """What ``numpy.dtype`` becomes: a name, and a byte order when BUILD brings one."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name.lstrip("<>=|"), ">" if name.startswith(">") else "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype[Any]:
        """The number type it stands for."""
        if self.name not in _NUMBERS:
            raise _Refused(f"an array of type {self.name!r}")
        return np.dtype(self.order + self.name)


class Array:
    """What a pickled numpy array becomes; ``array`` is None until its content has been read."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def fill(self, shape: Any, dtype: Any, data: Any, fortran: bool = False) -> "Array":
        """Put ``data`` (bytes; str from Python 2) into the shape."""
        if not isinstance(dtype, _DType):
            dtype = _DType(dtype)
        if isinstance(data, str):
            data = data.encode("latin1")
        flat = np.frombuffer(data, dtype.numpy()) if len(data) else np.empty(0, dtype.numpy())
        array = flat.reshape(shape, order="F" if fortran else "C")
        native = array.dtype.newbyteorder("=")
        self.array = array.astype(native, copy=not array.flags.writeable)
        return self

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.fill(shape, dtype, data, fortran)


class _Call:
    """A callable that a pickle may call and can do nothing else with."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode``, by which protocol 2 stores bytes."""
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


_READ = {
    ("numpy", "ndarray"): _Call(lambda shape, dtype, data: Array().fill(shape, dtype, data)),
    ("numpy", "dtype"): _Call(_DType),
    ("_codecs", "encode"): _Call(_encode),
    ("__builtin__", "bytes"): _Call(lambda: b""),  # the empty one, in protocol 2
    ("collections", "OrderedDict"): _Call(lambda: {}),
    **{
        (f"numpy.{core}.{module}", name): call
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _Call(lambda *_: Array())),
            ("multiarray", "scalar", _Call(lambda dtype, data: Array().fill((), dtype, data))),
            (
                "numeric",
                "_frombuffer",
                _Call(
                    lambda data, dtype, shape, order: Array().fill(shape, dtype, data, order == "F")
                ),
            ),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _READ:
            raise _Refused(f"{module}.{name}")
        return _READ[module, name]


def read_pickle(path: Path) -> Any:
    """The content of a pickle of plain data; numpy arrays are :class:`Array`.

    Raises:
        UserError: it is damaged, or names anything but plain data; nothing of it was run.
    """
    try:
        with open(path, "rb") as handle:
            return _Unpickler(handle, encoding="latin1").load()
    except _Refused as refused:
        raise UserError(
            f"{path} is refused: its pickle wants {refused}, and only numbers, text and arrays are "
            "let through; nothing of it was run"
        ) from None
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise UserError(
            f"{path} is not a whole pickle ({type(error).__name__}: {error}); get the file again"
        ) from None


class _Pickler(pickle.Pickler):
    """Arrays as ``numpy.ndarray(shape, dtype, buffer)``, a name that every numpy version has.

    numpy's own pickles name a private module that moved with numpy 2 and that numpy before 1.26
    cannot import.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            data = pickle.PickleBuffer(np.ascontiguousarray(obj).data)
            return np.ndarray, (obj.shape, obj.dtype.str, data)
        return NotImplemented


def write_detectron2(handle: BinaryIO, model: dict[str, np.ndarray]) -> None:
    """Write ``model`` (detectron2 names) as detectron2's checkpointer reads it.

    ``matching_heuristics`` lets ``res2.0...`` find ``backbone.res2.0...`` and, in a C4 model,
    ``res5.0...`` find ``roi_heads.res5.0...`` (detectron2, checkpoint/c2_model_loading.py).
    """
    _Pickler(handle, protocol=5).dump(
        {"model": model, "__author__": "siambench", "matching_heuristics": True}
    )
