"""NumPy arrays out of a pickle, read as data: opcodes are interpreted here, and nothing that the file names is ever
imported or called.

A pickle may name any callable, so loading one runs its author's code. Two public data sets come as pickles of arrays,
and the opcodes that arrays need are few. The five names such a file contains are matched as words, with the meaning
given to them below; any other name, and any opcode outside the table, is refused. Python's own disassembler
(`pickletools`) does the tokenising.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import Malformed

_MARK = object()
_KINDS = frozenset("fiub")


@dataclass
class _Array:
    """An array under construction: pickle makes it empty and fills it in later."""

    value: npt.NDArray[Any] | list[Any] | None = None


@dataclass
class _Kind:
    text: str


@dataclass(frozen=True)
class _Word:
    """A name in the file. It stays a word."""

    text: str


_WORDS = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
}


def read_arrays(data: bytes) -> Any:
    """The pickled value: dicts, lists, tuples, numbers, strings and arrays. Raises `Malformed` for anything else."""
    try:
        return _plain(_Reader().run(data))
    except Malformed:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, UnicodeError) as error:
        raise Malformed("not a pickle of arrays", detail=str(error)[:200]) from error


@dataclass
class _Reader:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            try:
                step = _STEPS[opcode.name]
            except KeyError:
                raise Malformed(f"a pickle with {opcode.name}, which no array needs; refused") from None
            step(self, argument)
        raise Malformed("a pickle without an end")

    def since_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def take(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise Malformed("a pickle that takes more than it has")
        del self.stack[-count:]
        return items


def _name(reader: _Reader, argument: str) -> None:
    if argument not in _WORDS:
        raise Malformed(f"a pickle that names {argument!r}; refused, nothing was run")
    reader.stack.append(_Word(argument))


def _reduce(reader: _Reader, _: object) -> None:
    word, arguments = reader.take(2)
    match word.text.split()[-1], arguments:
        case "_reconstruct", _:
            reader.stack.append(_Array())
        case "dtype", (str() as text, *_):
            reader.stack.append(_Kind(text))
        case "encode", (str() as text, str() as codec) if codec in ("latin1", "latin-1"):
            reader.stack.append(text.encode("latin-1"))
        case _:
            raise Malformed(f"a pickle that calls {word.text!r} in an unknown way; refused")


def _build(reader: _Reader, _: object) -> None:
    target, state = reader.take(2)
    if isinstance(target, _Array):
        _, shape, kind, fortran, content = state
        target.value = _filled(kind.text, shape, fortran, content)
    elif isinstance(target, _Kind):
        target.text = state[1] + target.text.lstrip("<>|=")
    else:
        raise Malformed("a pickle that sets the state of something that is no array; refused")
    reader.stack.append(target)


def _filled(kind: str, shape: tuple[int, ...], fortran: bool, content: Any) -> npt.NDArray[Any] | list[Any]:
    if isinstance(content, list):  # an array of Python objects, one level of nesting
        return content if shape else content[0]
    raw = content.encode("latin-1") if isinstance(content, str) else content
    letters = kind.lstrip("<>|=")
    if not letters or (letters[0] not in _KINDS and letters[0] not in "SU"):
        raise Malformed(f"an array of type {kind!r}; refused")
    return np.frombuffer(raw, dtype=np.dtype(kind)).reshape(shape, order="F" if fortran else "C")


def _plain(value: Any) -> Any:
    match value:
        case _Array():
            return _plain(value.value)
        case _Kind() | _Word():
            return str(value.text)
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case tuple():
            return tuple(_plain(item) for item in value)
    return value


def _append(reader: _Reader, _: object) -> None:
    target, item = reader.take(2)
    target.append(item)
    reader.stack.append(target)


def _appends(reader: _Reader, _: object) -> None:
    items = reader.since_mark()
    reader.stack[-1].extend(items)


def _set_items(reader: _Reader, _: object) -> None:
    items = reader.since_mark()
    reader.stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _tuple(count: int) -> Callable[[_Reader, Any], None]:
    def step(reader: _Reader, _: object) -> None:
        reader.stack.append(tuple(reader.take(count)))

    return step


def _constant(make: Callable[[], Any]) -> Callable[[_Reader, Any], None]:
    return lambda reader, _: reader.stack.append(make())


def _push(reader: _Reader, argument: Any) -> None:
    reader.stack.append(argument)


def _put(reader: _Reader, place: int) -> None:
    reader.memo[place] = reader.stack[-1]


def _get(reader: _Reader, place: int) -> None:
    reader.stack.append(reader.memo[place])


_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "PROTO": lambda reader, _: None,
    "GLOBAL": _name,
    "REDUCE": _reduce,
    "BUILD": _build,
    "MARK": _constant(lambda: _MARK),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEMS": _set_items,
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "LONG1"), _push
    ),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
}
