import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed, SignatureInvalid
from shared.ids import RolloutId, digest_of
from shared.signing.identity import FleetVerifier
from shared.signing.receipts import MAX_RECEIPT_BYTES, Receipt, sign_receipt, verify_receipt
from tests.unit.signing.kit import AUTHORITY, NOW, identity

DEVICE = identity()
VERIFIER = FleetVerifier(AUTHORITY.certificate_der, lambda: NOW)
RECEIPT = Receipt("dev-1", RolloutId("rol-1"), "digits", 2, digest_of(b"bundle"), "proven", NOW, accuracy_after=0.97)


def test_a_receipt_verifies_as_the_devices_own() -> None:
    data, signature = sign_receipt(DEVICE, RECEIPT)
    assert verify_receipt(VERIFIER, data, signature, DEVICE.certificate, "dev-1") == RECEIPT


@given(
    st.sampled_from(["proven", "refused", "failed", "reverted"]),
    st.text(max_size=80),
    st.integers(0, 10**9),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_receipt_comes_back_from_its_bytes(state: Any, reason: str, answers: int, accuracy: float | None) -> None:
    receipt = replace(RECEIPT, state=state, reason=reason, answers=answers, accuracy_before=accuracy)
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "\x1b]0;owned\x07", "\u202egnp.exe", "x" * 501])
def test_text_that_would_harm_a_terminal_or_a_database_is_no_receipt(text: str) -> None:
    plain = {**json.loads(RECEIPT.to_bytes()), "reason": text}
    data = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Malformed, match="canonical"):
        Receipt.from_bytes(data)


def test_a_device_whose_reason_does_not_print_signs_what_does() -> None:
    receipt = replace(RECEIPT, state="failed", reason="no memory:\n\x1b[31mkilled\ud800")
    assert receipt.reason == "no memory: \ufffd[31mkilled\ufffd"
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt


def test_a_receipt_about_another_device_is_refused() -> None:
    data, signature = sign_receipt(DEVICE, replace(RECEIPT, device="dev-2"))
    for expected in ("dev-1", "dev-2"):
        with pytest.raises(SignatureInvalid, match="a receipt about dev-2 was signed by dev-1"):
            verify_receipt(VERIFIER, data, signature, DEVICE.certificate, expected)


def test_a_receipt_replayed_on_another_devices_stream_is_refused() -> None:
    data, signature = sign_receipt(DEVICE, RECEIPT)
    with pytest.raises(SignatureInvalid):
        verify_receipt(VERIFIER, data, signature, DEVICE.certificate, "dev-2")


def test_a_signature_made_for_another_purpose_is_no_receipt() -> None:
    data = RECEIPT.to_bytes()
    with pytest.raises(SignatureInvalid):
        verify_receipt(VERIFIER, data, DEVICE.sign(data), DEVICE.certificate, "dev-1")


def test_a_changed_number_breaks_the_signature() -> None:
    data, signature = sign_receipt(DEVICE, RECEIPT)
    with pytest.raises(SignatureInvalid):
        verify_receipt(VERIFIER, data.replace(b"0.97", b"0.99"), signature, DEVICE.certificate, "dev-1")


def _json(**changes: Any) -> bytes:
    values = {**json.loads(RECEIPT.to_bytes()), **changes}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "not JSON": b"{",
        "a list": b"[]",
        "not UTF-8": b"\xff" + RECEIPT.to_bytes(),
        "an unknown field": _json(extra=1),
        "a missing field": RECEIPT.to_bytes().replace(b'"device":"dev-1",', b""),
        "spaces": RECEIPT.to_bytes().replace(b",", b", "),
        "a field twice": RECEIPT.to_bytes().replace(b"{", b'{"answers":9,', 1),
        "an unknown state": _json(state="splendid"),
        "a number for a name": _json(device=1),
        "text for a number": _json(answers="1"),
        "true for a number": _json(answers=True),
        "a whole number for a share": _json(accuracy_after=1),
        "not a number": RECEIPT.to_bytes().replace(b"0.97", b"NaN"),
        "infinite": RECEIPT.to_bytes().replace(b"0.97", b"1e999"),
        "a bad digest": _json(bundle_digest="../../etc"),
        "a bad model name": _json(model="../digits"),
        "too large": _json(reason="x" * MAX_RECEIPT_BYTES),
        "too deep": b'{"a":' * 5000,
    }.values(),
)
def test_bytes_that_are_no_receipt_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Receipt.from_bytes(data)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    with pytest.raises(Malformed):
        Receipt.from_bytes(data)
