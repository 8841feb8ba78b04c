from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Corrupt, SignatureInvalid
from shared.signing.certificates import Authority, generate_key, save_key
from shared.signing.identity import CERTIFICATE_FILE, KEY_FILE, DeviceIdentity, FleetVerifier
from tests.unit.signing.kit import AUTHORITY, DAY_S, NOW, identity, issue

DEVICE = identity()
VERIFIER = FleetVerifier(AUTHORITY.certificate_der, lambda: NOW)


@settings(max_examples=25)
@given(st.binary(max_size=200))
def test_what_a_device_signed_verifies_as_its_own(data: bytes) -> None:
    assert VERIFIER.verify(DEVICE.certificate, DEVICE.sign(data), data) == "dev-1"


@settings(max_examples=25)
@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_signature_holds_for_nothing_else(data: bytes, other: bytes) -> None:
    if data != other:
        with pytest.raises(SignatureInvalid, match="does not match what was signed"):
            VERIFIER.verify(DEVICE.certificate, DEVICE.sign(data), other)


@pytest.mark.parametrize(
    "signature", [b"", b"nonsense", DEVICE.sign(b"data")[:-1]], ids=["empty", "nonsense", "cut off"]
)
def test_bytes_that_are_no_signature_do_not_verify(signature: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        VERIFIER.verify(DEVICE.certificate, signature, b"data")


def test_another_devices_certificate_does_not_fit() -> None:
    with pytest.raises(SignatureInvalid):
        VERIFIER.verify(identity("dev-2").certificate, DEVICE.sign(b"data"), b"data")


def test_a_stranger_with_a_certificate_of_their_own_making_is_refused() -> None:
    stranger = identity(authority=Authority.create("test", NOW))
    with pytest.raises(SignatureInvalid, match="not issued by this fleet"):
        VERIFIER.verify(stranger.certificate, stranger.sign(b"data"), b"data")


def test_an_admin_cannot_sign_as_a_device() -> None:
    with pytest.raises(SignatureInvalid, match="role admin"):
        VERIFIER.verify(issue("admin", "ann"), b"", b"data")


def test_a_signature_of_an_expired_certificate_does_not_count() -> None:
    later = FleetVerifier(AUTHORITY.certificate_der, lambda: NOW + 91 * DAY_S)
    with pytest.raises(SignatureInvalid, match="expired"):
        later.verify(DEVICE.certificate, DEVICE.sign(b"data"), b"data")


def test_nonsense_for_a_certificate_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="not a certificate"):
        VERIFIER.verify(b"nonsense", DEVICE.sign(b"data"), b"data")


def test_an_identity_comes_back_from_disk_even_when_expired(tmp_path: Path) -> None:
    DEVICE.save(tmp_path)
    loaded = DeviceIdentity.load(tmp_path, AUTHORITY.certificate_der)
    assert (loaded.device, loaded.certificate) == ("dev-1", DEVICE.certificate)
    assert VERIFIER.verify(loaded.certificate, loaded.sign(b"data"), b"data") == "dev-1"
    assert loaded.certificate_pem.startswith(b"-----BEGIN CERTIFICATE")


def test_a_folder_without_a_usable_identity_says_enrol_again(tmp_path: Path) -> None:
    with pytest.raises(Corrupt):
        DeviceIdentity.load(tmp_path, AUTHORITY.certificate_der)
    DEVICE.save(tmp_path)
    with pytest.raises(Corrupt, match="enrol again"):
        DeviceIdentity.load(tmp_path, Authority.create("other", NOW).certificate_der)
    (tmp_path / CERTIFICATE_FILE).write_bytes(b"nonsense")
    with pytest.raises(Corrupt, match="enrol again"):
        DeviceIdentity.load(tmp_path, AUTHORITY.certificate_der)


def test_a_key_of_another_device_is_noticed(tmp_path: Path) -> None:
    DEVICE.save(tmp_path)
    save_key(tmp_path / KEY_FILE, generate_key())
    with pytest.raises(Corrupt, match="do not belong together"):
        DeviceIdentity.load(tmp_path, AUTHORITY.certificate_der)


def test_no_key_shows_in_a_repr() -> None:
    assert repr(DEVICE) == "DeviceIdentity(dev-1)"
    assert b"PRIVATE" in DEVICE.key_pem  # for TLS, and only when asked
