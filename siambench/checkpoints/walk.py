"""Pickles, walked through before anything is built, so that building them can do no harm.

What a pickle may *name* is decided where it is read. This file decides what it may *cost*: memory, time
and depth in proportion to its length.
"""

import mmap
import pickletools
from typing import IO, Any, cast

from siambench.checkpoints.inert import Refused

_MOST_STEPS = 3_000_000  # a ResNet-50 with its optimiser takes some 20,000
_DEEPEST = 100  # tuples within tuples; hashing 200,000 overruns the stack
_NAME = 4096  # characters that a name has at most
_PART = 16  # the cost of an element, where that of a character is 1
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"}


class _Item:
    """What the walk keeps of a value: short text, numbers, names and a tuple's items; of others nothing.

    Attributes:
        value: that.
        cost: of copying or hashing it.
        depth: of tuples within it, itself counted; 0 when it is no tuple.
        used: whether a tuple holds it, whose cost it may no longer change.
    """

    __slots__ = ("cost", "depth", "used", "value")

    def __init__(self, value: Any = None) -> None:
        self.cost, self.depth, self.used = _PART, 0, False
        if isinstance(value, str | bytes | bytearray):
            self.cost += len(value)
            if len(value) > _NAME:  # an array's content: only its length is of interest
                value = type(value)()
        self.value = value

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
            small = isinstance(key.value, int) and abs(key.value) < 1 << 32
            if not (isinstance(key.value, str) or small):  # other keys can be made to collide
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
            if items and items[0].value == "module":  # torch before 1.6 saves whole models so
                raise Refused(f"wants {items[1].value}")
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
