"""How a blob is cut for the wire: 1 MiB pieces, each its own zstd frame (RFC 8878) when that pays.

Float weights hardly compress. The first piece decides for the whole blob, so the cost of trying is one piece.
"""

from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from shared.errors import Malformed

PIECE_BYTES = 1 << 20
_WORTH_IT = 0.9  # of the original size
_LEVEL = 1


def pieces(file: BinaryIO, *, compress: bool) -> Iterator[tuple[bytes, bool]]:
    """(data, is it a zstd frame) until the end of `file`. `compress` says whether the receiver takes frames."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    first = True
    while piece := file.read(PIECE_BYTES):
        if compress:
            frame = compressor.compress(piece)
            if first and len(frame) > _WORTH_IT * len(piece):
                compress = False
            else:
                yield frame, True
                first = False
                continue
        first = False
        yield piece, False


def open_piece(data: bytes, *, is_frame: bool) -> bytes:
    """A received piece. Raises `Malformed` for a broken frame, or one that unpacks to more than a piece."""
    if not is_frame:
        return data
    try:
        out = zstandard.ZstdDecompressor().decompress(data, max_output_size=PIECE_BYTES)
    except zstandard.ZstdError as error:
        raise Malformed("a broken zstd frame", detail=str(error)) from error
    if len(out) > PIECE_BYTES:
        raise Malformed("a zstd frame larger than a piece")
    return out
