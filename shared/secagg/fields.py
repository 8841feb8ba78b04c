"""The flat shape in which messages travel: names to numbers, text, bytes, or lists of one of these.

Flower's `ConfigRecord` holds it as it is.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from shared.errors import Malformed

FieldValue = int | float | str | bytes | list[int] | list[float] | list[bool] | list[str] | list[bytes]
Fields = Mapping[str, FieldValue]

MAX_ROWS = 1 << 16
MAX_ID = 200  # characters, of what a peer names a group or a round
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class HiddenBytes(bytes):
    """Bytes that do not show in a `repr`, for secrets that must rest in a record."""

    def __repr__(self) -> str:
        return f"<{len(self)} hidden bytes>"

    __str__ = __repr__


class Reader:
    """Typed access to fields that a peer sent. Every method raises `Malformed` for a missing or mistyped one."""

    def __init__(self, fields: Fields, what: str) -> None:
        self._fields = fields
        self._what = what

    def _get(self, name: str, *kinds: type) -> Any:
        value = self._fields.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise Malformed(f"{self._what} lack a valid {name!r}")
        return value

    def _list(self, name: str, *kinds: type) -> list[Any]:
        values: list[Any] = self._get(name, list)
        found = set(map(type, values))
        if len(values) > MAX_ROWS or not all(issubclass(kind, kinds) and kind is not bool for kind in found):
            raise Malformed(f"{self._what} lack a valid {name!r}")
        return values

    def integer(self, name: str) -> int:
        return int(self._get(name, int))

    def number(self, name: str) -> float:
        return self._float(name, self._get(name, int, float))

    def _float(self, name: str, value: float) -> float:
        try:
            found = float(value)
        except OverflowError as error:
            raise Malformed(f"{self._what} lack a valid {name!r}") from error
        if found != value:  # NaN, or an integer that would be rounded
            raise Malformed(f"{self._what} lack a valid {name!r}")
        return found

    def text(self, name: str) -> str:
        value: str = self._get(name, str)
        self._check_text(name, value)
        return value

    def identifier(self, name: str) -> str:
        """Text that is short enough to be a name of something that is kept."""
        value = self.text(name)
        if len(value) > MAX_ID:
            raise Malformed(f"{self._what} lack a valid {name!r}")
        return value

    def _check_text(self, name: str, value: str) -> None:
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise Malformed(f"{self._what} lack a valid {name!r}") from error

    def blob(self, name: str) -> bytes:
        """As they are: hidden ones stay hidden."""
        value: bytes = self._get(name, bytes)
        return value

    def integers(self, name: str) -> list[int]:
        return self._list(name, int)

    def numbers(self, name: str) -> list[float]:
        return [self._float(name, item) for item in self._list(name, int, float)]

    def texts(self, name: str) -> list[str]:
        values: list[str] = self._list(name, str)
        self._check_text(name, "".join(values))
        return values

    def blobs(self, name: str) -> list[bytes]:
        return [bytes(item) for item in self._list(name, bytes)]

    def columns(self, *columns: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of columns that must be of one length."""
        if len({len(column) for column in columns}) > 1:
            raise Malformed(f"{self._what} have columns of different lengths")
        return list(zip(*columns, strict=True))

    def table(self, keys: Sequence[K], values: Sequence[V]) -> dict[K, V]:
        """Two columns of one length, whose keys must be different: what is said twice could be read in two ways."""
        if len(keys) != len(values):
            raise Malformed(f"{self._what} have columns of different lengths")
        found = dict(zip(keys, values, strict=True))
        if len(found) != len(keys):
            raise Malformed(f"{self._what} name one twice")
        return found
