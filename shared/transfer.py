"""How a blob is cut for the wire: 1 MiB pieces, each its own zstd frame (RFC 8878) when that pays.

Float weights hardly compress, and masked words not at all. A sample of the first piece decides for the whole blob, so that finding
out costs a sixteenth of a piece.
"""

from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from shared.errors import Malformed

PIECE_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16
_WORTH_IT = 0.9  # of the original size
_LEVEL = 1


def pieces(file: BinaryIO, *, compress: bool) -> Iterator[tuple[bytes, bool]]:
    """(data, is it a zstd frame) until the end of `file`. `compress` says whether the receiver takes frames."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    first = True
    while piece := file.read(PIECE_BYTES):
        if first and compress:
            sample = piece[-_SAMPLE_BYTES:]  # a file begins with a header, which compresses better than what follows
            compress = len(compressor.compress(sample)) <= _WORTH_IT * len(sample)
        first = False
        yield (compressor.compress(piece), True) if compress else (piece, False)


def open_piece(data: bytes, *, is_frame: bool) -> bytes:
    """A received piece. Raises `Malformed` for a broken frame, or one that unpacks to more than a piece."""
    if not is_frame:
        return data
    try:
        # zstandard ignores `max_output_size` where a frame states its own size.
        if zstandard.frame_content_size(data) > PIECE_BYTES:
            raise Malformed("a zstd frame larger than a piece")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=PIECE_BYTES)
    except zstandard.ZstdError as error:
        raise Malformed("a broken zstd frame", detail=str(error)) from error
