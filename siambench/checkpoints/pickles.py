"""Pickles: walked through before anything is built; detectron2's ``.pkl`` files read and written.

Reading never imports what a pickle names: the few names that arrays need stand for the objects of
``inert.py``, so that not even numpy sees a pickle's instructions.
"""

import mmap
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from siambench.checkpoints.inert import NUMPY, PLAIN, Refused
from siambench.errors import UserError

_MOST_STEPS = 1_000_000  # a ResNet-50 with its optimiser takes some 20,000
_DEEPEST = 100  # tuples within tuples; hashing 200,000 overruns the stack
_PART = 16  # the cost of an element, where that of a character is 1
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"}


class _Item:
    """What the walk keeps of a value: text, numbers, names and a tuple's items; of others nothing.

    Attributes:
        value: that.
        cost: of copying or hashing it.
        depth: of tuples within it, itself counted; 0 when it is no tuple.
        used: whether a tuple holds it, whose cost it may no longer change.
    """

    __slots__ = ("cost", "depth", "used", "value")

    def __init__(self, value: Any = None) -> None:
        self.value, self.depth, self.used = value, 0, False
        self.cost = _PART + (len(value) if isinstance(value, str | bytes) else 0)

    def holds(self, items: list["_Item"]) -> None:
        """Add the cost of holding ``items``."""
        self.cost += sum(item.cost if item.depth else _PART for item in items)


class _Walk:
    """One pickle's instructions, followed with costs in place of values.

    A few bytes can ask for any amount of memory or time: by a length, by a place in the memo, by a
    text that is encoded again and again, by a tuple of itself twice, twice, twice, that is hashed.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.stack: list[_Item] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Item] = {}
        self.stored: list[tuple[Any, ...]] = []  # the constants of persistent ids
        self.spent = self.odd_keys = self.steps = 0

    def step(self, op: pickletools.OpcodeInfo, arg: Any) -> None:
        """Follow one instruction.

        Raises:
            Refused: no checkpoint needs it.
            Exception: anything else, where the pickle is damaged.
        """
        self.steps += 1
        name, before = op.name, [thing.name for thing in op.stack_before]
        if name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "MEMOIZE" or "PUT" in name:
            place = len(self.memo) if arg is None else int(arg)
            if place > self.steps:
                raise ValueError("the memo is counted wrong")
            self.memo[place] = self.stack[-1]
        elif "GET" in name:
            self.stack.append(self.memo[int(arg)])
        elif name == "FRAME" and arg > self.size:
            raise ValueError("a frame is longer than the file")
        else:
            given = self._take(before)
            if name in _FILLS:
                self._fill(name, given)
            elif name == "DUP":
                self.stack += given * 2
            elif op.stack_after:
                self.stack.append(self._make(name, arg, given))

    def _take(self, before: list[str]) -> list[_Item]:
        """What an instruction uses up, first to last."""
        given: list[_Item] = []
        fixed = len(before)
        if "mark" in before:
            fixed, cut = before.index("mark"), self.marks.pop()
            given = self.stack[cut:]
            del self.stack[cut:]
        cut = len(self.stack) - fixed
        if cut < (self.marks[-1] if self.marks else 0):
            raise ValueError("its stack runs empty")
        given = self.stack[cut:] + given
        del self.stack[cut:]
        return given

    def _fill(self, name: str, given: list[_Item]) -> None:
        """A list, set or dict gets more elements."""
        target, *items = given
        if target.used:
            raise Refused("changes what it has already used")
        target.holds(items)
        if name.startswith("SETITEM"):
            self._hash(items[::2])
        elif name == "ADDITEMS":
            self._hash(items)
        self.stack.append(target)

    def _hash(self, keys: list[_Item]) -> None:
        for key in keys:
            if not isinstance(key.value, str):  # other keys can be made to collide
                self.odd_keys += 1
                self.spent += self.odd_keys
            self.spent += key.cost if key.depth else 0

    def _make(self, name: str, arg: Any, given: list[_Item]) -> _Item:
        """The item that an instruction leaves on the stack."""
        made = _Item(arg)
        if name.endswith("GLOBAL"):
            made.value = (arg or f"{given[0].value} {given[1].value}").replace(" ", ".")
            if made.value in ("__builtin__.bytearray", "builtins.bytearray"):
                raise Refused(
                    "wants builtins.bytearray, which makes any number of bytes of nothing"
                )
        elif name.startswith(("TUPLE", "EMPTY_TUPLE")):
            made.value, made.depth = given, 1 + max((item.depth for item in given), default=0)
            made.cost += sum(item.cost for item in given)
            for item in given:
                item.used = True
            if made.depth > _DEEPEST:
                raise Refused(f"nests tuples more than {_DEEPEST} deep")
        elif name in _CALLS:
            if name == "BUILD":
                made = given.pop(0)
            cost = sum(item.cost for item in given)
            self.spent += cost
            made.cost += cost
            if name != "BUILD" and given:
                _check_call(given)
        elif name == "BINPERSID":
            self.spent += given[0].cost
            items = given[0].value if given[0].depth else given
            self.stored.append(tuple(item.value for item in items))
        else:
            made.holds(given)
            self._hash(given[::2] if name == "DICT" else given if name == "FROZENSET" else [])
        return made


def _check_call(given: list[_Item]) -> None:
    """Two calls that torch lets through and no checkpoint makes."""
    name = str(given[0].value)
    if name == "_codecs.encode":  # latin1 is how protocol 2 stores bytes; some codecs take forever
        args = given[-1].value if given[-1].depth else []
        if len(args) != 2 or args[1].value != "latin1":
            raise Refused("wants another encoding than latin1")
    if name.startswith("torch.") and name.endswith(("Tensor", "Storage")):
        raise Refused(f"makes a {name} of any size without content")


def walk(stream: IO[bytes] | mmap.mmap, size: int) -> list[tuple[Any, ...]]:
    """Go through one pickle without building anything, so that building it can do no harm.

    Args:
        stream: at the pickle's first byte; left behind its last.
        size: bytes of the whole stream.

    Returns:
        The constants of its persistent ids; a torch file's are ``("storage", "torch.FloatStorage",
        key, location, count, ...)``.

    Raises:
        Refused: it would take memory or time out of proportion to its length.
        Exception: anything else, where it is damaged.
    """
    start, walked = stream.tell(), _Walk(size)
    for op, arg, at in pickletools.genops(cast(IO[bytes], stream)):
        walked.step(op, arg)
        if walked.steps > _MOST_STEPS:
            raise Refused(f"has more than {_MOST_STEPS:,} parts")
        if walked.spent > 1_000_000 + 8 * (int(at or 0) - start):
            raise Refused("takes more memory or time than its length explains")
    return walked.stored


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


def printable(text: str, most: int = 200) -> str:
    """A stranger's text as part of one line: nothing that steers a terminal, and not endless."""
    short = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else " " for c in short)


def refusal(path: Path, refused: Refused) -> UserError:
    """The one line for a pickle that does more than hold data."""
    return UserError(
        f"{path} is refused: its pickle {printable(str(refused))}, and only tensors, arrays and plain data are let "
        "through; nothing of it was run; save the model's state_dict() alone"
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
