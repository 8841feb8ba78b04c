"""Pieces of blobs, and what a peer may not make of them."""

import io
import resource

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.transfer import PIECE_BYTES, open_piece, pieces


@given(st.binary(max_size=200), st.integers(0, 3), st.booleans())
def test_pieces_come_back_as_they_were(data: bytes, repeats: int, compress: bool) -> None:
    whole = data * (1 << (5 * repeats))
    assert (
        b"".join(open_piece(*found[:1], is_frame=found[1]) for found in pieces(io.BytesIO(whole), compress=compress))
        == whole
    )


def bomb(size: int, *, says_so: bool) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=says_so)
    made = compressor.compressobj(size=size if says_so else -1)
    block = bytes(1 << 20)
    return b"".join(made.compress(block) for _ in range(size >> 20)) + made.flush()


@pytest.mark.parametrize("says_so", [True, False], ids=["that says its size", "that does not say its size"])
def test_a_frame_that_unpacks_to_a_gigabyte_is_refused_before_it_is_unpacked(says_so: bool) -> None:
    frame = bomb(1 << 30, says_so=says_so)
    assert len(frame) < 1 << 17
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Malformed):
        open_piece(frame, is_frame=True)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10


def test_a_frame_one_byte_over_is_refused_and_a_whole_piece_is_not() -> None:
    for extra in (0, 1):
        for says_so in (True, False):
            frame = zstandard.ZstdCompressor(write_content_size=says_so).compress(bytes(PIECE_BYTES + extra))
            if extra:
                with pytest.raises(Malformed):
                    open_piece(frame, is_frame=True)
            else:
                assert open_piece(frame, is_frame=True) == bytes(PIECE_BYTES)


@given(st.binary(max_size=60))
def test_whatever_calls_itself_a_frame_opens_or_is_malformed(data: bytes) -> None:
    for frame in (data, b"\x28\xb5\x2f\xfd" + data):
        try:
            assert len(open_piece(frame, is_frame=True)) <= PIECE_BYTES
        except Malformed:
            continue
