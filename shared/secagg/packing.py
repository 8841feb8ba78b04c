"""Where m bits an element lie, m from 1 to 32: in words that are summed and masked, and as bytes on the wire.

As many elements as fit lie in one word of 64 bits, each in m bits, as the integer sum of x_j 2^(m j): words may be summed as they
are, since no sum of elements leaves its m bits (`schema`), and the mask of a word hides all of them. So three elements of 17 to
21 bits take 8 bytes of keystream, where a lane each would take 12. Only the bits that are used travel.

Elements are signed. Element j * words + i is the j-th of word i, so both ways work on whole rows.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import Malformed

MOST_BITS = 32  # an element
WORD_BITS = 64
_FEW = 1024  # columns
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Layout:
    """Of `length` elements of `bits` bits. Raises `ValueError` unless 1 <= bits <= 32."""

    length: int
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST_BITS:
            raise ValueError(f"elements have 1 to {MOST_BITS} bits, not {self.bits}")

    @property
    def fields(self) -> int:
        """Elements in a word."""
        return WORD_BITS // self.bits

    @property
    def used(self) -> int:
        """Bits of a word: what is above them is noise."""
        return self.fields * self.bits

    @property
    def words(self) -> int:
        return -(-self.length // self.fields)

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return -(-self.words * self.used // 8)

    def zeros(self) -> Words:
        return np.zeros(self.words, dtype="<u8")

    def low(self, words: Words) -> Words:
        """`words` without the noise."""
        return words & self._low

    def join(self, elements: NDArray[Any]) -> Words:
        """Words of signed whole `elements`, shape (length,), of any real type."""
        words = np.zeros(self.words, dtype="<i8")
        moved = np.empty_like(words)
        for field in range(self.fields):
            row = elements[field * self.words : (field + 1) * self.words]
            part = moved[: row.size]
            np.copyto(part, row, casting="unsafe")
            part <<= field * self.bits
            words[: row.size] += part
        return words.view("<u8")

    def split(self, words: Words) -> NDArray[np.int32]:
        """The inverse of `join`, for sums that stay within -2^(bits - 1) and 2^(bits - 1) - 1."""
        half = 1 << (self.bits - 1)
        raised = words + np.uint64(sum(half << (field * self.bits) for field in range(self.fields)))
        elements = np.empty(self.length, dtype="<i4")
        for field in range(self.fields):
            row = elements[field * self.words : (field + 1) * self.words]
            part = raised[: row.size] >> np.uint64(field * self.bits)
            part &= np.uint64((1 << self.bits) - 1)
            part -= np.uint64(half)
            np.copyto(row, part.view("<i8"), casting="unsafe")
        return elements

    def pack(self, words: Words) -> bytes:
        """The used bits of every word, lowest first: whole columns of a `_Weave`, then what is left, word after word."""
        if self.used == WORD_BITS:
            return words.tobytes()
        weave, words = _weave(self.used), self.low(words)
        columns, left = divmod(words.size, weave.rows)
        packed = weave.join(words[: words.size - left].reshape(weave.rows, columns))
        last = (words[words.size - left :, None] >> self._bits) & np.uint64(1)
        return packed.tobytes() + np.packbits(last.astype("u1").reshape(-1), bitorder="little").tobytes()

    def unpack(self, data: bytes) -> Words:
        """The inverse of `pack`. Raises `Malformed` for bytes that it did not write."""
        if len(data) != self.size:
            raise Malformed(f"{self.length} elements of {self.bits} bits are {self.size} bytes, not {len(data)}")
        if self.used == WORD_BITS:
            return np.frombuffer(data, dtype="<u8")
        weave, words = _weave(self.used), self.zeros()
        columns, left = divmod(words.size, weave.rows)
        packed = np.frombuffer(data, dtype="<u8", count=weave.words * columns).reshape(weave.words, columns)
        weave.split(packed, words[: words.size - left].reshape(weave.rows, columns))
        bits = np.unpackbits(np.frombuffer(data, dtype="u1", offset=packed.nbytes), bitorder="little")
        if bits[left * self.used :].any():
            raise Malformed("there is something after the last word")
        last = bits[: left * self.used].reshape(left, self.used).astype("<u8") << self._bits
        np.bitwise_or.reduce(last, axis=1, out=words[words.size - left :])
        words &= self._low
        return words

    @cached_property
    def _low(self) -> np.uint64:
        return np.uint64((1 << self.used) - 1)

    @cached_property
    def _bits(self) -> Words:
        return np.arange(self.used, dtype="<u8")


class _Weave:
    """How a column of `rows` values of 33 to 63 bits becomes a column of `words` whole words, bit after bit, and back.

    Of short columns all rows are moved at once; of long ones a row at a time, which stays in the cache.
    """

    def __init__(self, used: int) -> None:
        self.rows = WORD_BITS // math.gcd(used, WORD_BITS)
        self.words = self.rows * used // WORD_BITS
        self._at, shift = np.divmod(np.arange(self.rows) * used, WORD_BITS)  # the word that a row begins in, and where
        self._begins = np.diff(self._at, prepend=-1) > 0  # no other row begins in that word before
        self._spills = shift + used > WORD_BITS  # into the next word
        self._shift = shift[:, None].astype("<u8")
        self._kept = np.minimum(WORD_BITS - shift, used)[:, None].astype("<u8")  # bits that do not spill

    def join(self, rows: Words) -> Words:
        """Shape (words, columns). `rows` are without noise."""
        words = np.zeros((self.words, rows.shape[1]), dtype="<u8")
        at, begins, spills = self._at, self._begins, self._spills
        if rows.shape[1] < _FEW:
            words[at[begins]] = rows[begins] << self._shift[begins]
            words[at[~begins]] |= rows[~begins] << self._shift[~begins]
            words[at[spills] + 1] |= rows[spills] >> self._kept[spills]
            return words
        moved = np.empty(rows.shape[1], dtype="<u8")
        for place, row in enumerate(rows):
            words[at[place]] |= np.left_shift(row, self._shift[place], out=moved)
            if spills[place]:
                np.right_shift(row, self._kept[place], out=words[at[place] + 1])
        return words

    def split(self, words: Words, rows: Words) -> None:
        """The inverse, with noise above the used bits. `rows`, shape (rows, columns), are written."""
        at, spills = self._at, self._spills
        if rows.shape[1] < _FEW:
            np.right_shift(words[at], self._shift, out=rows)
            rows[spills] |= words[at[spills] + 1] << self._kept[spills]
            return
        moved = np.empty(rows.shape[1], dtype="<u8")
        for place, row in enumerate(rows):
            np.right_shift(words[at[place]], self._shift[place], out=row)
            if spills[place]:
                np.bitwise_or(row, np.left_shift(words[at[place] + 1], self._kept[place], out=moved), out=row)


_weave = cache(_Weave)
