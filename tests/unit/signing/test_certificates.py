import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import Corrupt, Malformed, SignatureInvalid
from shared.ids import digest_of
from shared.signing.certificates import (
    AUTHORITY_DAYS,
    BACKDATE_S,
    Authority,
    check_csr,
    generate_key,
    key_sha256,
    load_key,
    make_csr,
    public_key_of,
    save_key,
    to_pem,
    verify_certificate,
)
from tests.unit.signing.kit import AUTHORITY, DAY_S, NOW, handmade, issue

CA = AUTHORITY.certificate_der


def test_a_device_certificate_says_who_it_is_and_until_when() -> None:
    key = generate_key()
    certificate = AUTHORITY.issue(make_csr(key, "any"), "dev-1", "device", now=NOW, valid_for_s=90 * DAY_S)
    subject = verify_certificate(CA, certificate, NOW)
    assert (subject.role, subject.id, subject.public_key_sha256) == ("device", "dev-1", key_sha256(key.public_key()))
    assert (subject.issued_at, subject.expires_at) == (NOW - BACKDATE_S, NOW + 90 * DAY_S)
    assert public_key_of(certificate).public_numbers() == key.public_key().public_numbers()


def test_the_request_does_not_choose_the_name() -> None:
    certificate = AUTHORITY.issue(
        make_csr(generate_key(), "shoal://admin/eve"), "dev-1", "device", now=NOW, valid_for_s=60
    )
    assert verify_certificate(CA, certificate, NOW).role == "device"


def test_a_server_certificate_names_its_hosts_and_serves_only() -> None:
    csr = make_csr(generate_key(), "c")
    der = AUTHORITY.issue(csr, "main", "coordinator", now=NOW, valid_for_s=60, hosts=("localhost", "127.0.0.1", "::1"))
    extensions = x509.load_der_x509_certificate(der).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert verify_certificate(CA, der, NOW).role == "coordinator"


def test_the_authority_lives_ten_years_and_is_named_by_its_hash() -> None:
    certificate = x509.load_der_x509_certificate(CA)
    assert certificate.not_valid_after_utc.timestamp() == NOW + AUTHORITY_DAYS * DAY_S
    assert AUTHORITY.fingerprint == digest_of(CA)


ATTACKS: Mapping[str, tuple[Callable[[], bytes], float, str]] = {
    "of another fleet's authority": (
        lambda: issue(authority=Authority.create("other", NOW)),
        0,
        "not issued by this fleet",
    ),
    "of an authority with the same name": (
        lambda: issue(authority=Authority.create("test", NOW)),
        0,
        "not issued by this fleet",
    ),
    "expired": (issue, 91 * DAY_S, "has expired"),
    "not yet valid": (issue, -BACKDATE_S - 1, "not valid yet"),
    "a device's, used for serving": (lambda: handmade(usage=ExtendedKeyUsageOID.SERVER_AUTH), 0, "not for this use"),
    "a coordinator's, used as a client": (lambda: handmade(("shoal://coordinator/main",)), 0, "not for this use"),
    "of an unknown role": (lambda: handmade(("shoal://owner/eve",)), 0, "not for this use"),
    "of nobody": (lambda: handmade(("shoal://device/",)), 0, "not for this use"),
    "of two devices": (lambda: handmade(("shoal://device/a", "shoal://device/b")), 0, "not for this use"),
    "of another scheme": (lambda: handmade(("https://device/dev-1",)), 0, "not for this use"),
    "an authority's own": (lambda: handmade(is_authority=True), 0, "not for this use"),
    "without a subject": (lambda: handmade(extensions=False), 0, "names no subject"),
    "the authority's itself": (lambda: CA, 0, "names no subject"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_certificate_is_refused_that_is(name: str) -> None:
    make, later, why = ATTACKS[name]
    with pytest.raises(SignatureInvalid, match=why):
        verify_certificate(CA, make(), NOW + later)


@pytest.mark.parametrize("data", [b"", b"nonsense", issue()[:-1]])
def test_bytes_that_are_no_certificate_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        verify_certificate(CA, data, NOW)
    with pytest.raises(Malformed):
        public_key_of(data)


def test_a_certificate_with_one_changed_byte_does_not_verify() -> None:
    der = bytearray(issue())
    der[-1] ^= 1
    with pytest.raises((SignatureInvalid, Malformed)):
        verify_certificate(CA, bytes(der), NOW)


def _request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "csr",
    [
        b"",
        b"nonsense",
        _request(ec.generate_private_key(ec.SECP384R1())),
        _request(ed25519.Ed25519PrivateKey.generate()),
        _request(rsa.generate_private_key(65537, 2048)),
    ],
    ids=["empty", "nonsense", "P-384", "Ed25519", "RSA"],
)
def test_only_p256_requests_are_taken(csr: bytes) -> None:
    with pytest.raises(Malformed):
        check_csr(csr)


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    mine, theirs = make_csr(generate_key(), "d"), generate_key().public_key()
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    own = check_csr(mine).public_key.public_bytes(*point)
    forged = mine.replace(own, theirs.public_bytes(*point))
    assert forged != mine
    with pytest.raises(SignatureInvalid, match="not signed by its own key"):
        check_csr(forged)
    with pytest.raises(SignatureInvalid):
        AUTHORITY.issue(forged, "dev-1", "device", now=NOW, valid_for_s=60)


def test_an_authority_comes_back_from_disk_and_its_key_is_private(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path)
    assert stat.S_IMODE((tmp_path / "authority.key.pem").stat().st_mode) == 0o600
    loaded = Authority.load(tmp_path)
    assert loaded.fingerprint == AUTHORITY.fingerprint
    assert verify_certificate(CA, issue(authority=loaded), NOW).id == "dev-1"


@pytest.mark.parametrize("missing", ["authority.key.pem", "authority.der"])
def test_half_an_authority_is_corrupt(tmp_path: Path, missing: str) -> None:
    AUTHORITY.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(Corrupt):
        Authority.load(tmp_path)


def test_a_key_file_comes_back_and_others_are_corrupt(tmp_path: Path) -> None:
    key = generate_key()
    save_key(tmp_path / "key.pem", key)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert load_key(tmp_path / "key.pem").private_numbers() == key.private_numbers()
    other = ec.generate_private_key(ec.SECP384R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, data in {"empty": b"", "nonsense": b"x", "P-384": pem}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Corrupt):
            load_key(tmp_path / name)
    with pytest.raises(Corrupt):
        load_key(tmp_path / "absent")


def test_no_key_shows_in_a_repr() -> None:
    secret = f"{AUTHORITY._key.private_numbers().private_value:x}"
    assert secret not in repr(AUTHORITY)
    assert "PRIVATE" not in repr(AUTHORITY)
    assert b"BEGIN CERTIFICATE" in to_pem(CA)
