"""What both ends agree on: any difference shows in a digest, sets of seats are bitmaps, and settings follow what a sum told."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed, Unsupported
from shared.secagg.graph import Rates, derive
from shared.secagg.quantize import Total
from shared.secagg.schema import BITS, MetricField
from shared.secagg.terms import (
    CLIPS,
    MAX_CLIENTS,
    GroupTerms,
    RoundTerms,
    Settings,
    from_bitmap,
    rotation_of,
    to_bitmap,
)

GROUP = GroupTerms("group", 10, 4, Rates(0.2, 0.05))
ROUND = RoundTerms(b"b" * 32, 1, "round-1", frozenset({1, 2, 3}), "d" * 64, "i" * 64)
BASE = {"w": np.zeros((2, 3), "f4"), "n": np.zeros(4, "i8")}
ROTATION = rotation_of("round-1")

GROUP_CHANGES: dict[str, dict[str, Any]] = {
    "id": {"group_id": "grouq"},
    "clients": {"clients": 11},
    "rounds": {"rounds": 5},
    "dropout": {"rates": Rates(0.2 + 2**-54, 0.05)},
    "corrupt": {"rates": Rates(0.2, 0.06)},
    "security": {"rates": Rates(0.2, 0.05, 41)},
    "aborts": {"rates": Rates(0.2, 0.05, 40, 21)},
}
ROUND_CHANGES: dict[str, dict[str, Any]] = {
    "group": {"binding": b"c" * 32},
    "number": {"number": 2},
    "id": {"round_id": "round-2"},
    "one seat more": {"present": frozenset({1, 2, 3, 4})},
    "another seat": {"present": frozenset({1, 2, 4})},
    "schema": {"schema_digest": "e" * 64},
    "inputs": {"inputs_digest": "j" * 64},
}


@pytest.mark.parametrize("change", GROUP_CHANGES.values(), ids=GROUP_CHANGES)
def test_any_difference_between_groups_changes_their_digest(change: dict[str, Any]) -> None:
    assert replace(GROUP).digest == GROUP.digest == GroupTerms.from_fields(GROUP.to_fields()).digest
    assert replace(GROUP, **change).digest != GROUP.digest


@pytest.mark.parametrize("change", ROUND_CHANGES.values(), ids=ROUND_CHANGES)
def test_any_difference_between_rounds_changes_their_digest(change: dict[str, Any]) -> None:
    assert replace(ROUND).digest == ROUND.digest
    assert replace(ROUND, **change).digest != ROUND.digest


def test_a_group_says_how_many_must_stay_and_how_dense_its_graph_is() -> None:
    assert GROUP.fewest == 8
    assert GROUP.degrees == derive(10, GROUP.rates)


@pytest.mark.parametrize(
    "change", [{"group_id": ""}, {"clients": 1}, {"clients": MAX_CLIENTS + 1}, {"rounds": 0}, {"rounds": 65}], ids=str
)
def test_a_group_that_makes_no_sense_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        replace(GROUP, **change)


def test_each_round_has_a_rotation_of_its_own() -> None:
    rotations = {rotation_of(f"round-{number}") for number in range(100)}
    assert len(rotations) == 100
    assert {len(rotation) for rotation in rotations} == {32}


# ---- bitmaps


@given(st.integers(1, 300), st.data())
def test_a_set_of_seats_comes_back_from_its_bitmap(clients: int, data: st.DataObject) -> None:
    seats = data.draw(st.frozensets(st.integers(1, clients)))
    bitmap = to_bitmap(seats, clients)
    assert len(bitmap) == math.ceil(clients / 8)
    assert from_bitmap(bitmap, clients) == seats


def test_a_known_bitmap() -> None:
    assert to_bitmap({1, 3, 8, 9}, 10).hex() == "a180"


@pytest.mark.parametrize(
    ("bitmap", "clients"),
    [(b"", 1), (b"\x00", 9), (b"\x00\x00", 8), (b"\x01", 7), (b"\xff\xff", 10)],
    ids=["empty", "short", "long", "a seat too many", "seats too many"],
)
def test_a_bitmap_of_another_length_or_with_seats_that_do_not_exist_is_malformed(bitmap: bytes, clients: int) -> None:
    with pytest.raises(Malformed):
        from_bitmap(bitmap, clients)


# ---- settings


def total(sizes: dict[str, float], weight: int = 300, count: int = 10) -> Total:
    return Total(count, weight, {}, {}, 0.0, sizes)


def test_the_first_exchange_takes_every_bit_of_a_word_and_the_given_ranges() -> None:
    schema = Settings(float_range=2.0, integer_range=9.0, max_weight=50).schema(10, BASE, ROTATION)
    assert (schema.modulus_bits, schema.bits) == (32, 28)
    assert (schema.unit_weight, schema.clip, schema.rotation) == (50.0, 1.0, "")
    assert [field.scale for field in schema.arrays] == [2.0, 9.0]


@pytest.mark.parametrize("bits", BITS)
def test_later_exchanges_take_the_bits_asked_for_and_the_scales_that_were_seen(bits: int) -> None:
    after = Settings(bits=bits, integer_range=9.0).after(total({"w": 0.6}))
    assert after.unit_weight == 30.0
    assert after.scales == {"w": pytest.approx(0.02)}
    schema = after.schema(10, BASE, ROTATION)
    assert (schema.bits, schema.modulus_bits, schema.clip) == (bits, bits + 4, CLIPS[bits])
    assert schema.unit_weight == 30.0
    assert schema.rotation == ROTATION.hex()
    assert [field.scale for field in schema.arrays] == [pytest.approx(0.02), 9.0]


def test_scales_follow_up_and_down_in_steps() -> None:
    """So that one exchange without any change does not leave the next without a scale, nor one device's word with a useless one."""
    settings = Settings().after(total({"w": 3.0}))
    grown = settings.after(total({"w": 3000.0}))
    assert grown.scales["w"] == pytest.approx(0.8)
    for _ in range(10):
        grown = grown.after(total({"w": 1e9}))
    assert grown.scales["w"] == 8.0, "never above the largest change that a first exchange allows"
    assert Settings().after(total({"w": 1e9})).scales["w"] == 8.0
    shrunk = settings.after(total({"w": 0.0}))
    assert shrunk.scales["w"] == pytest.approx(0.1 / 64)
    for _ in range(100):
        shrunk = shrunk.after(total({"w": 0.0}))
    assert shrunk.scales["w"] > 0


def test_of_many_groups_the_median_is_what_counts() -> None:
    """One that tells of huge changes, of a huge weight, or that all was clipped, changes nothing for the others."""
    first, honest = Settings(), total({"w": 3.0})
    poisoned = replace(honest, weight=10**6, sizes={"w": 1e9}, clipped=1.0)
    for groups in ([honest, honest, poisoned], [poisoned, honest, poisoned, honest, honest]):
        assert first.after(*groups) == first.after(honest)
        assert first.after(honest).after(*groups) == first.after(honest).after(honest)
    assert first.after(honest, poisoned) != first.after(honest), "of two nobody knows which one to believe"


def test_scales_of_arrays_that_were_not_summed_are_kept() -> None:
    settings = Settings().after(total({"w": 3.0})).after(total({"v": 6.0}))
    assert settings.scales == {"w": pytest.approx(0.1), "v": pytest.approx(0.2)}


def test_an_exchange_without_floats_teaches_nothing() -> None:
    settings = Settings()
    assert settings.after(total({})) is settings


def test_an_array_whose_scale_is_not_known_makes_it_a_first_exchange_again() -> None:
    settings = Settings().after(total({"w": 3.0}))
    assert settings.schema(10, {**BASE, "v": np.zeros(1, "f8")}, ROTATION).rotation == ""
    assert settings.schema(10, {"n": BASE["n"]}, ROTATION).rotation == "", "integers have no use for one"


def test_ranges_follow_the_first_pattern_that_matches() -> None:
    settings = Settings(float_range=2.0, integer_range=9.0, ranges={"*.running_*": 1000.0, "*": 5.0})
    base = {"bn.running_var": np.zeros(1, "f4"), "w": np.zeros(1, "f4")}
    assert [field.scale for field in settings.schema(3, base, ROTATION).arrays] == [1000.0, 5.0]


def test_both_ends_build_one_digest_and_any_difference_changes_it() -> None:
    settings = Settings(metrics=(MetricField("loss", 0.0, 20.0),), ranges={"w": 3.0}, bits=6).after(total({"w": 0.3}))
    again = Settings.from_fields(settings.to_fields())
    assert again == settings
    digest = settings.schema(3, BASE, ROTATION).digest
    assert again.schema(3, BASE, ROTATION).digest == digest
    others = [
        settings.schema(4, BASE, ROTATION),
        settings.schema(3, BASE, rotation_of("round-2")),
        settings.schema(3, {**BASE, "w": np.zeros((2, 3), "f8")}, ROTATION),
        settings.schema(3, {**BASE, "w": np.zeros((3, 2), "f4")}, ROTATION),
        settings.schema(3, {"w": BASE["w"]}, ROTATION),
        replace(settings, bits=8).schema(3, BASE, ROTATION),
        replace(settings, max_weight=9).schema(3, BASE, ROTATION),
        replace(settings, unit_weight=1.0).schema(3, BASE, ROTATION),
        settings.after(total({"w": 0.4})).schema(3, BASE, ROTATION),
    ]
    assert len({digest, *(other.digest for other in others)}) == 1 + len(others)


IMPOSSIBLE: dict[str, Any] = {
    "a range of NaN": lambda: Settings(float_range=math.nan),
    "an infinite range": lambda: Settings(ranges={"w": math.inf}),
    "a range of zero": lambda: Settings(integer_range=0.0),
    "a negative scale": lambda: Settings(scales={"w": -1.0}),
    "weight zero": lambda: Settings(max_weight=0),
    "the weight as a metric": lambda: Settings(metrics=(MetricField("num-examples", 0, 1),)),
    "five bits": lambda: Settings(bits=5),
    "a negative unit of weight": lambda: Settings(unit_weight=-1.0),
    "a unit of weight of NaN": lambda: Settings(unit_weight=math.nan),
    "more clients than a word has room for": lambda: replace(
        Settings(bits=16).after(total({"w": 1.0})), max_weight=1
    ).schema(1 << 17, BASE, ROTATION),
    "arrays that cannot be summed": lambda: Settings().schema(3, {"b": np.zeros(1, bool)}, ROTATION),
}


@pytest.mark.parametrize("build", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_settings_that_could_go_wrong_are_refused_when_they_are_made(build: Any) -> None:
    with pytest.raises(Unsupported):
        build()


def test_a_share_of_the_elements_is_sent_once_their_scale_is_known() -> None:
    settings = Settings(subsample=0.25)
    big = {"w": np.zeros(1000, np.float32)}
    first = settings.schema(10, big, ROTATION)
    later = settings.after(total({"w": 3.0})).schema(10, big, ROTATION)
    assert (first.kept, later.kept, later.elements) == (1000, 250, 1000)
    assert later.length == later.exact * later.digits + 250
    assert Settings.from_fields(settings.to_fields()).subsample == 0.25


@pytest.mark.parametrize("wrong", [0.0, 0.01, 1.01, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(Unsupported):
        Settings(subsample=wrong)


def test_what_is_not_sent_must_be_owed() -> None:
    with pytest.raises(Unsupported, match="feedback"):
        Settings(subsample=0.5, feedback=False)
