"""The contents of CIFAR-10's Python layout, whose files are pickles, without unpickling them.

A pickle is a program for a stack machine that may import and call anything. `genops` decodes its instructions and
carries out none. Of these, `contents` carries out the few that build numbers, text, lists, tuples and dicts; what
the program would import is a name, and what it would call or set up is a record of that wish.
"""

from pickletools import genops
from typing import Any, NamedTuple


class Call(NamedTuple):
    """What the program would call, and with what."""

    function: Any
    arguments: Any


class SetUp(NamedTuple):
    """What the program would set up, and from which state."""

    thing: Any
    state: Any


_LITERALS = {"BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "GLOBAL"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_WISHES = {"REDUCE": Call, "BUILD": SetUp}


def contents(raw: bytes) -> Any:
    """What a file of the layout holds; its text is str, a byte a character. ValueError for any other program."""
    try:
        return _run(raw)
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("an instruction does not find what it needs") from None


def _run(raw: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def from_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for instruction, argument, _ in genops(raw):
        name = instruction.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in _WISHES:
            stack[-2:] = [_WISHES[name](*stack[-2:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(from_mark()))
        elif name == "APPENDS":
            items = from_mark()
            stack[-1].extend(items)
        elif name == "SETITEMS":
            items = from_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][key] = value
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"the instruction {name} has no place in it")
    raise ValueError("it does not end")
