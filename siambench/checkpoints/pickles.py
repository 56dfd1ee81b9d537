"""detectron2's ``.pkl`` files, and any pickle of plain data: read and written.

Reading never imports what a pickle names: the few names that arrays need stand for the objects of
``inert.py``, so that not even numpy sees a pickle's instructions.
"""

import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from siambench.checkpoints.inert import NUMPY, PLAIN, Refused
from siambench.checkpoints.walk import walk
from siambench.errors import UserError, printable


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


_READ = {name: _Call(stand_in) for name, stand_in in (NUMPY | PLAIN).items()}


class PlainUnpickler(pickle.Unpickler):
    """Knows plain data and numpy's arrays; for pickles that :func:`walk` has gone through."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full not in _READ:
            raise Refused(f"wants {full}")
        return _READ[full]


def read_pickle(path: Path) -> Any:
    """The content of a pickle of plain data; numpy arrays are :class:`~inert.Array`.

    Raises:
        UserError: it is damaged, or names anything but plain data; nothing of it was run.
    """
    try:
        with open(path, "rb") as handle:
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
                walk(content, len(content))
            return PlainUnpickler(handle, encoding="latin1").load()
    except Refused as refused:
        raise refusal(path, refused) from None
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise UserError(
            f"{path} is not a whole pickle ({printable(f'{type(error).__name__}: {error}')}); get the "
            "file again"
        ) from None


def refusal(path: Path, refused: Refused) -> UserError:
    """The one line for a pickle that does more than hold data."""
    return UserError(
        f"{path} is refused: its pickle {printable(str(refused))}, and only tensors, arrays and "
        "plain data are let through; nothing of it was run; save the model's state_dict() alone, where "
        "you trust the file after torch.load(..., weights_only=False)"
    )


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
