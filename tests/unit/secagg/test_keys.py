"""Known answers (RFC 7748, RFC 5869, RFC 4231) and what a key must never do."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError, SignatureInvalid
from shared.secagg.fields import HiddenBytes
from shared.secagg.keys import (
    InsecureWarning,
    KeyPair,
    Root,
    Secret,
    UnsignedIdentity,
    UnsignedVerifier,
    bind,
    bind_each,
    digest,
    digests,
    expand,
    extract,
    is_tag,
    letter_key,
    mask_keys,
    mask_secrets,
    pair_root,
    pair_roots,
    seal,
    tag,
    unseal,
    witness_key,
)

BINDING = b"g" * 32
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


def test_many_agreements_are_those_made_one_by_one() -> None:
    own, peers = KeyPair.generate(os.urandom), [KeyPair.generate(os.urandom).public for _ in range(4)]
    assert own.agreements(peers) == [own.agree(peer) for peer in peers]


def test_hkdf_agrees_with_rfc_5869_case_1() -> None:
    root = extract(Secret(b"\x0b" * 22), bytes.fromhex("000102030405060708090a0b0c"))
    assert root == from_hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    made = expand(root, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"))
    assert made == from_hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")


def test_a_tag_agrees_with_rfc_4231_case_5_which_is_cut_to_128_bits() -> None:
    key, word = Secret(b"\x0c" * 20), bytes.fromhex("a3b6167473100ee06e0c796c2955552b")
    assert tag(key, b"Test With Truncation") == word
    assert is_tag(word, key, b"Test With Truncation")


@pytest.mark.parametrize("word", [b"", bytes(16), bytes(32)], ids=["nothing", "zeros", "too long"])
def test_no_other_word_is_a_tag(word: bytes) -> None:
    key = Secret(bytes(range(32)))
    assert not is_tag(word, key, b"data")
    assert not is_tag(tag(key, b"data"), key, b"other data")
    assert not is_tag(tag(key, b"data")[:-1], key, b"data")


@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:4])
def test_a_public_key_of_small_order_is_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError):
        KeyPair.generate(os.urandom).agree(point)


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(ProtocolError):
        KeyPair.generate(os.urandom).agree(b"short")


def test_both_ends_of_a_pair_find_the_same_root() -> None:
    one, other = KeyPair.generate(os.urandom), KeyPair.generate(os.urandom)
    here = pair_root(one.agree(other.public), BINDING, "a", "b")
    assert here == pair_root(other.agree(one.public), BINDING, "b", "a")


def test_no_two_purposes_groups_pairs_rounds_or_directions_share_a_key() -> None:
    agreed = KeyPair.generate(os.urandom).agree(KeyPair.generate(os.urandom).public)
    root = pair_root(agreed, BINDING, "a", "b")
    secret = mask_secrets([root], [1])[0]
    (own, pairwise), (own_2, pairwise_2) = mask_keys(b"round 1"), mask_keys(b"round 2")
    keys = [
        root,
        pair_root(agreed, b"another group", "a", "b"),
        pair_root(agreed, BINDING, "a", "c"),
        secret,
        mask_secrets([root], [2])[0],
        letter_key(root, "a"),
        letter_key(root, "b"),
        witness_key(root, "a"),
        witness_key(root, "b"),
        *(make(secret) for make in (own, pairwise, own_2, pairwise_2)),
    ]
    assert len({key.reveal() for key in keys}) == len(keys)
    assert {len(key.reveal()) for key in keys} == {32}


def test_a_root_expands_as_any_key_does() -> None:
    raw = os.urandom(32)
    for info in (b"", b"one", b"another"):
        assert Root(raw).expand(info) == expand(Secret(raw), info)
    assert "secret of 32 bytes" in repr(Root(raw))


def test_roots_with_many_are_those_with_each() -> None:
    agreed = [Secret(os.urandom(32)) for _ in range(3)]
    roots = pair_roots(agreed, BINDING, "b", ["a", "c", "b2"])
    assert roots == [pair_root(one, BINDING, "b", other) for one, other in zip(agreed, ["a", "c", "b2"], strict=True)]


def test_mask_secrets_lie_round_by_round_and_pair_by_pair() -> None:
    roots = [Root(os.urandom(32)) for _ in range(3)]
    for number, row in zip((2, 7), mask_secrets(roots, (2, 7)), strict=True):
        assert row.reveal() == b"".join(mask_secrets([root], [number])[0].reveal() for root in roots)


FIELDS = st.lists(st.one_of(st.text(max_size=8), st.binary(max_size=8), st.integers(-(2**70), 2**70)), max_size=5)


@given(FIELDS, FIELDS)
def test_bound_fields_parse_only_one_way(one: list[str | bytes | int], other: list[str | bytes | int]) -> None:
    same = [(type(item), item) for item in one] == [(type(item), item) for item in other]
    assert (bind(*one) == bind(*other)) == same
    assert (digest(*one) == digest(*other)) == same


@given(FIELDS, st.lists(st.binary(max_size=40), max_size=4))
def test_digests_of_many_endings_are_those_of_each(fields: list[str | bytes | int], items: list[bytes]) -> None:
    endings = bind_each(items)
    assert endings == [bind(item) for item in items]
    expected = [digest(*fields, item) for item in items]
    assert digests(*fields, endings=endings) == expected
    assert [digest(*fields, ending=ending) for ending in endings] == expected


def test_a_box_opens_with_its_own_key_only() -> None:
    key = Secret(os.urandom(32))
    box = seal(key, Secret(b"shares"))
    assert unseal(key, box) == Secret(b"shares")
    with pytest.raises(ProtocolError):
        unseal(Secret(os.urandom(32)), box)


def test_a_box_agrees_with_the_gcm_specification_test_case_14() -> None:
    """An all-zero key, nonce and block."""
    box = seal(Secret(bytes(32)), Secret(bytes(16)))
    assert box.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


@given(st.integers(0, 8 * (6 + 16) - 1))
def test_a_box_with_any_bit_flipped_does_not_open(bit: int) -> None:
    key = Secret(bytes(range(32)))
    box = bytearray(seal(key, Secret(b"shares")))
    box[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        unseal(key, bytes(box))


@pytest.mark.parametrize("box", [b"", b"short", bytes(12), bytes(16)])
def test_a_truncated_box_does_not_open(box: bytes) -> None:
    with pytest.raises(ProtocolError):
        unseal(Secret(bytes(32)), box)


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
