"""Pickles are written by hand here, opcode by opcode, as the public data sets hold them (protocol 2)."""

import numpy as np
import pytest

from shared.errors import Malformed
from simulations.pickled_arrays import read_arrays

_EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
_F4 = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def _array(values: np.ndarray) -> bytes:
    raw = values.astype("<f4").tobytes()
    rows, columns = values.shape
    return _EMPTY + b"(K\x01" + bytes([75, rows, 75, columns, 0x86]) + _F4 + b"\x89U" + bytes([len(raw)]) + raw + b"tb"


def test_an_array_in_a_dict_comes_back_with_its_shape_and_values() -> None:
    values = np.array([[1.5, -2, 3], [4, 5, 6.25]], np.float32)
    read = read_arrays(b"\x80\x02}(X\x01\x00\x00\x00a" + _array(values) + b"u.")
    assert list(read) == ["a"]
    assert read["a"].dtype == np.float32
    assert np.array_equal(read["a"], values)


def test_an_array_shared_through_the_memo_is_the_same_array() -> None:
    values = np.ones((1, 2), np.float32)
    first, second = read_arrays(b"\x80\x02" + _array(values) + b"q\x01h\x01\x86.")
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("attack", "pickled"),
    {
        "it calls os.system": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        "it evaluates text": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        "it names a callable on the stack": b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.",
        "it builds an instance": b"\x80\x02(ios\nsystem\n.",
        "it makes a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "it uses a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "it decodes with a codec that unpacks": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
        "it has an array of objects disguised as bytes": _EMPTY
        + b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R\x89U\x08aaaaaaaatb.",
        "its bytes do not fill its shape": _EMPTY + b"(K\x01K\x09\x85" + _F4 + b"\x89U\x04aaaatb.",
        "it takes from an empty stack": b"\x80\x02\x86.",
        "it ends before its end": b"\x80\x02}",
        "it is empty": b"",
        "it is text": b"hello",
    }.items(),
)
def test_a_pickle_is_refused_when(attack: str, pickled: bytes) -> None:
    with pytest.raises(Malformed):
        read_arrays(pickled)
