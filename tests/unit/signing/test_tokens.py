import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.ids import digest_of
from shared.signing.tokens import JoinToken

TOKEN = JoinToken("00112233aabbccdd", "ab" * 32, bytes(range(16)))


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_a_token_comes_back_from_its_text(token_id: bytes, fingerprint: bytes, secret: bytes) -> None:
    token = JoinToken(token_id.hex(), fingerprint.hex(), secret)
    assert JoinToken.parse(token.text) == token
    assert JoinToken.parse(f"  {token.text}\n") == token


def test_the_text_of_a_token_is_fixed() -> None:
    """A known answer: tokens that people keep stay valid across versions."""
    body = bytes.fromhex("00112233aabbccdd") + bytes(range(16)) + b"\xab" * 32
    checksum = hashlib.sha256(b"shoal join token" + body).digest()[:4]
    assert TOKEN.text == "shoal1." + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


def test_fresh_tokens_differ_and_name_the_authority() -> None:
    one, two = JoinToken.create("cd" * 32), JoinToken.create("cd" * 32)
    assert one.secret != two.secret
    assert one.id != two.id
    assert one.fingerprint == "cd" * 32


@pytest.mark.parametrize(
    ("text", "why"),
    {
        "nothing": ("", "begins with shoal1"),
        "another version": (TOKEN.text.replace("shoal1.", "shoal2."), "begins with shoal1"),
        "another thing": ("ghp_0123456789", "begins with shoal1"),
        "only the prefix": ("shoal1.", "cut off"),
        "cut off": (TOKEN.text[:-8], "cut off"),
        "cut off inside a byte": (TOKEN.text[:-1], "."),
        "too long": (TOKEN.text + "AAAA", "too long"),
        "strange characters": (TOKEN.text[:20] + "!" + TOKEN.text[21:], "characters that no token has"),
        "not ASCII": (TOKEN.text[:20] + "é" + TOKEN.text[21:], "characters that no token has"),
        "one letter changed": (
            TOKEN.text[:20] + ("A" if TOKEN.text[20] != "A" else "B") + TOKEN.text[21:],
            "changed on its way",
        ),
    }.values(),
)
def test_a_broken_token_says_what_happened_to_it(text: str, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        JoinToken.parse(text)


@given(st.text(max_size=120))
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(Malformed):
        JoinToken.parse(text)


def test_no_error_repeats_the_secret() -> None:
    broken = TOKEN.text[:-4] + "AAAA"
    with pytest.raises(Malformed) as caught:
        JoinToken.parse(broken)
    assert broken[10:30] not in str(caught.value)


def test_no_secret_shows_in_a_repr_and_only_its_hash_is_stored() -> None:
    assert repr(TOKEN) == f"JoinToken(id='00112233aabbccdd', fingerprint='{'ab' * 32}')"
    assert TOKEN.secret_sha256 == digest_of(bytes(range(16)))
