"""Fuzzed bytes read as choices, and values damaged by them. What is used up reads as zeros: short inputs are small damage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
INTERESTING = (0, 1, -1, 2, 31, 32, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, 0.05, 0.5, 1e-320, 1e308, -1.0, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "masked", "keys", "dev-1", "ready", "\ud800", "\x1b[2J", "é" * 40, "*" * 60)


class Source:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return max(0, len(self._data) - self._at)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")

    def rest(self) -> bytes:
        return self.take(self.left)

    def below(self, limit: int) -> int:
        return int.from_bytes(self.take(2), "little") % limit

    def choose(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def anything(self) -> Any:
        """A value of any kind that a field may have."""
        kinds: tuple[Callable[[], Any], ...] = (
            lambda: self.choose(INTERESTING),
            lambda: self.choose(FLOATS),
            lambda: self.choose(TEXTS),
            lambda: self.take(self.below(80)),
            lambda: [self.choose(INTERESTING) for _ in range(self.below(5))],
            lambda: [self.take(self.below(40)) for _ in range(self.below(4))],
            lambda: [self.choose(TEXTS) for _ in range(self.below(4))],
            lambda: [self.choose(FLOATS) for _ in range(self.below(4))],
        )
        return self.choose(kinds)()

    def damage(self, value: Any) -> Any:
        """The value, a little different."""
        if isinstance(value, list) and value and self.below(2):
            place = self.below(len(value))
            changed = (
                [*value[:place], self.damage(value[place]), *value[place + 1 :]],
                value[:place],
                [*value, value[place]],
                [value[place], *value[:place], *value[place + 1 :]],
            )
            return self.choose(changed)
        if isinstance(value, bytes) and value and self.below(2):
            place = self.below(len(value))
            flipped = bytes(value[:place]) + bytes([value[place] ^ (1 << self.below(8))]) + bytes(value[place + 1 :])
            return self.choose((flipped, bytes(value[:place]), bytes(value) + self.take(1 + self.below(40))))
        if isinstance(value, int) and self.below(2):
            return value + self.choose((1, -1, 2, 1 << 8))
        return self.anything()

    def damaged(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Some of the fields, damaged or gone: none at all for an input that is used up."""
        found = dict(fields)
        for _ in range(self.below(4)):
            name = self.choose(sorted(found) or [""])
            if self.below(8) == 7:
                found.pop(name, None)
            else:
                found[name] = self.damage(found.get(name))
        return found
