import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.jobfile import to_toml

_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_LEAVES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3))
_TABLES = st.recursive(
    st.dictionaries(_KEYS, _LEAVES, max_size=3),
    lambda inner: st.dictionaries(
        _KEYS, st.one_of(_LEAVES, inner, st.lists(inner, min_size=1, max_size=3)), max_size=3
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(_TABLES)
def test_what_is_written_reads_back_the_same(values: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_a_value_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        to_toml({"a": None})
    with pytest.raises(TypeError, match="float"):
        to_toml({"a": float("nan")})
