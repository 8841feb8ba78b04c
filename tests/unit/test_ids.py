"""Identifiers: the right shape, never the same twice, safe as file names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import ids
from shared.errors import Malformed


@pytest.mark.parametrize(
    ("new", "shape"),
    [
        (ids.new_device_id, r"dev-[0-9a-f]{16}"),
        (ids.new_job_id, r"job-[0-9a-f]{10}"),
        (ids.new_task_id, r"tsk-[0-9a-f]{16}"),
        (ids.new_command_id, r"cmd-[0-9a-f]{16}"),
        (ids.new_rollout_id, r"rol-[0-9a-f]{10}"),
    ],
)
def test_a_fresh_id_has_its_shape_and_is_fresh(new: type, shape: str) -> None:
    made = {new() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(shape, item) and ids.parse_name(item) == item for item in made)


def test_node_ids_fit_a_signed_integer_of_sql_and_are_never_zero() -> None:
    assert all(0 < ids.new_node_id() < 1 << 63 for _ in range(1000))


def test_a_digest_is_the_sha_256_of_the_standard() -> None:
    """FIPS 180-4, the one-block example."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        assert ids.digest_of(data) == expected
    assert ids.parse_digest(expected) == expected


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "../" + "0" * 61, "0" * 63 + "٠"]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        ids.parse_digest(text)


@given(st.text(max_size=70))
def test_a_name_is_safe_in_a_path_or_refused(text: str) -> None:
    try:
        name = ids.parse_name(text)
    except Malformed:
        return
    assert name == text
    assert 0 < len(name) <= 63
    assert not set(name) & set("/\\\0\n \"'{}")
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize("text", ["", ".", "..", "-rf", "a/b", "Dev1", "a" * 64, "a\n", "ä"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        ids.parse_name(text)
