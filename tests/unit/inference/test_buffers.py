"""The pool of arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.buffers import BufferPool, bucket_of


@given(st.integers(1, 4096))
def test_a_bucket_is_the_smallest_power_of_two_that_holds_the_rows(rows: int) -> None:
    bucket = bucket_of(rows)
    assert bucket & (bucket - 1) == 0
    assert bucket >= rows > bucket // 2 or rows == bucket == 1


def test_a_steady_load_allocates_once_per_bucket() -> None:
    pool = BufferPool()
    for _ in range(100):
        for rows in (5, 6, 7, 8):
            assert pool.take("in:x", rows, (3, 2), "float32").shape == (rows, 3, 2)
    assert pool.allocated == 1


def test_an_input_and_an_output_never_share_memory() -> None:
    pool = BufferPool()
    one, other = pool.take("in:x", 4, (3,), "float32"), pool.take("out:x", 4, (3,), "float32")
    assert not np.shares_memory(one, other)
    assert one.flags.c_contiguous


def test_the_pool_forgets_the_shape_used_longest_ago() -> None:
    pool = BufferPool(kept=2)
    pool.take("a", 1, (1,), "float32")
    pool.take("b", 1, (1,), "float32")
    pool.take("a", 1, (1,), "float32")
    pool.take("c", 1, (1,), "float32")  # b goes
    pool.take("a", 1, (1,), "float32")
    assert pool.allocated == 3
    pool.take("b", 1, (1,), "float32")
    assert pool.allocated == 4
