"""Known answers (RFC 7748, RFC 5869) and what a key must never do."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError, SignatureInvalid
from shared.secagg.fields import HiddenBytes
from shared.secagg.keys import (
    InsecureWarning,
    KeyPair,
    Secret,
    UnsignedIdentity,
    UnsignedVerifier,
    bind,
    hkdf,
    pair_mask_key,
    seal,
    self_mask_key,
    share_key,
    unseal,
)

TERMS = b"t" * 32
ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
BOB_PUBLIC = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
SHARED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
SMALL_ORDER = (bytes(32), b"\x01" + bytes(31), bytes.fromhex("ec" + "ff" * 30 + "7f"))


def from_hex(text: str) -> Secret:
    return Secret(bytes.fromhex(text))


def test_x25519_agrees_with_rfc_7748_section_6_1() -> None:
    alice, bob = KeyPair.from_private(from_hex(ALICE)), KeyPair.from_private(from_hex(BOB))
    assert alice.public.hex() == ALICE_PUBLIC
    assert bob.public.hex() == BOB_PUBLIC
    assert alice.agree(bob.public) == bob.agree(alice.public) == from_hex(SHARED)


def test_x25519_agrees_with_rfc_7748_section_5_2() -> None:
    pair = KeyPair.from_private(from_hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert pair.agree(point) == from_hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")


def test_hkdf_agrees_with_rfc_5869_case_1() -> None:
    made = hkdf(
        Secret(b"\x0b" * 22),
        bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
        salt=bytes.fromhex("000102030405060708090a0b0c"),
        length=42,
    )
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert made == from_hex(expected)


@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:4])
def test_a_public_key_of_small_order_is_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError):
        KeyPair.generate(os.urandom).agree(point)


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(ProtocolError):
        KeyPair.generate(os.urandom).agree(b"short")


def test_both_ends_of_a_pair_make_the_same_mask_key() -> None:
    one, other = KeyPair.generate(os.urandom), KeyPair.generate(os.urandom)
    assert pair_mask_key(one, other.public, TERMS, "a", "b") == pair_mask_key(other, one.public, TERMS, "b", "a")
    assert share_key(one, other.public, TERMS, "a", "b") == share_key(other, one.public, TERMS, "a", "b")


def test_no_two_purposes_rounds_pairs_or_directions_share_a_key() -> None:
    one, other = KeyPair.generate(os.urandom), KeyPair.generate(os.urandom)
    keys = [
        pair_mask_key(one, other.public, TERMS, "a", "b"),
        pair_mask_key(one, other.public, b"other round", "a", "b"),
        pair_mask_key(one, other.public, TERMS, "a", "c"),
        share_key(one, other.public, TERMS, "a", "b"),
        share_key(one, other.public, TERMS, "b", "a"),
        self_mask_key(one.agree(other.public), TERMS, "a"),
        self_mask_key(one.agree(other.public), TERMS, "b"),
    ]
    assert len({key.reveal() for key in keys}) == len(keys)
    assert {len(key.reveal()) for key in keys} == {32}


FIELDS = st.lists(st.one_of(st.text(max_size=8), st.binary(max_size=8), st.integers(-(2**70), 2**70)), max_size=5)


@given(FIELDS, FIELDS)
def test_bound_fields_parse_only_one_way(one: list[str | bytes | int], other: list[str | bytes | int]) -> None:
    same = [(type(item), item) for item in one] == [(type(item), item) for item in other]
    assert (bind(*one) == bind(*other)) == same


def test_a_box_opens_only_for_its_round_and_parties() -> None:
    key = Secret(os.urandom(32))
    box = seal(key, b"shares", b"round 1, a to b", os.urandom)
    assert unseal(key, box, b"round 1, a to b") == b"shares"
    with pytest.raises(ProtocolError):
        unseal(key, box, b"round 2, a to b")
    with pytest.raises(ProtocolError):
        unseal(Secret(os.urandom(32)), box, b"round 1, a to b")


@given(st.integers(0, 8 * (12 + 6 + 16) - 1))
def test_a_box_with_any_bit_flipped_does_not_open(bit: int) -> None:
    key = Secret(bytes(range(32)))
    box = bytearray(seal(key, b"shares", b"", os.urandom))
    box[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        unseal(key, bytes(box), b"")


@pytest.mark.parametrize("box", [b"", b"short", bytes(12)])
def test_a_truncated_box_does_not_open(box: bytes) -> None:
    with pytest.raises(ProtocolError):
        unseal(Secret(bytes(32)), box, b"")


def test_a_secret_survives_neither_repr_nor_pickle() -> None:
    secret = Secret(b"very secret key material")
    for text in (repr(secret), str(secret), f"{secret}", repr([secret]), repr(KeyPair.generate(lambda n: b"k" * n))):
        assert "very" not in text
        assert "kkkk" not in text
    with pytest.raises(TypeError):
        secret.__reduce_ex__(4)  # what every pickler calls


def test_hidden_bytes_are_bytes_that_do_not_show() -> None:
    hidden = HiddenBytes(b"very secret")
    assert hidden == b"very secret"
    assert "very" not in repr(hidden) + str(hidden) + f"{hidden}" + repr({"key": [hidden]})


def test_the_unsigned_twins_warn_and_still_tell_damage() -> None:
    with pytest.warns(InsecureWarning):
        identity = UnsignedIdentity("dev-1")
    with pytest.warns(InsecureWarning):
        verifier = UnsignedVerifier()
    assert verifier.verify(identity.certificate, identity.sign(b"data"), b"data") == "dev-1"
    with pytest.raises(SignatureInvalid):
        verifier.verify(identity.certificate, identity.sign(b"data"), b"other")
    with pytest.raises(SignatureInvalid):
        verifier.verify(b"\xff", identity.sign(b"data"), b"data")
