"""X.509 for one fleet: a P-256 authority, certificates for devices, admins and the coordinator (RFC 5280).

Whom a certificate speaks for is its alternative name `shoal://ROLE/ID`. Devices and admins get the client-auth usage, the
coordinator the server-auth usage and its host names.
"""

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import Corrupt, Malformed, SignatureInvalid
from shared.files import write_atomic
from shared.ids import digest_of

Role = Literal["device", "admin", "coordinator"]
_ROLES = get_args(Role)
AUTHORITY_DAYS = 3650
BACKDATE_S = 300.0  # devices' clocks are a little behind
_PREFIX = "shoal://"


@dataclass(frozen=True)
class Subject:
    """Whom a verified certificate speaks for."""

    role: Role
    id: str
    public_key: ec.EllipticCurvePublicKey = field(repr=False)
    issued_at: float
    expires_at: float

    @property
    def public_key_sha256(self) -> str:
        return key_sha256(self.public_key)


@dataclass(frozen=True)
class Request:
    """A checked certificate signing request."""

    public_key: ec.EllipticCurvePublicKey = field(repr=False)

    @property
    def public_key_sha256(self) -> str:
        return key_sha256(self.public_key)


def key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo."""
    return digest_of(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def generate_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def save_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Readable by its owner alone."""
    write_atomic(path, key_to_pem(key), mode=0o600)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises `Corrupt`."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Corrupt(f"{path} holds no readable key", detail=type(error).__name__) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Corrupt(f"{path} is not a P-256 key")
    return key


def to_pem(certificate_der: bytes) -> bytes:
    return _parse(certificate_der).public_bytes(serialization.Encoding.PEM)


def make_csr(key: ec.EllipticCurvePrivateKey, common_name: str) -> bytes:
    """A PKCS#10 request (RFC 2986), DER."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def check_csr(csr_der: bytes) -> Request:
    """Raises `Malformed` unless it is a P-256 request, `SignatureInvalid` unless its sender holds the key."""
    try:
        request = x509.load_der_x509_csr(csr_der)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed("not a certificate signing request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Malformed("a device key must be on the curve P-256")
    if not request.is_signature_valid:
        raise SignatureInvalid("the signing request is not signed by its own key")
    return Request(key)


class Authority:
    """The fleet's certificate authority: whoever holds its key decides who belongs to the fleet."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate_der: bytes) -> None:
        self._key = key
        self._certificate = _parse(certificate_der)
        self.certificate_der = certificate_der

    def __repr__(self) -> str:
        return f"Authority({self.fingerprint[:12]}…)"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as join tokens carry it."""
        return digest_of(self.certificate_der)

    @classmethod
    def create(cls, name: str, now: float) -> "Authority":
        key = generate_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:50]} authority")])
        certificate = (
            _builder(subject, subject, key.public_key(), now - BACKDATE_S, now + AUTHORITY_DAYS * 86_400)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate.public_bytes(serialization.Encoding.DER))

    def save(self, folder: Path) -> None:
        """As `authority.key.pem` (0600) and `authority.der`."""
        save_key(folder / "authority.key.pem", self._key)
        write_atomic(folder / "authority.der", self.certificate_der)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """Raises `Corrupt`."""
        try:
            certificate_der = (folder / "authority.der").read_bytes()
            return cls(load_key(folder / "authority.key.pem"), certificate_der)
        except (OSError, Malformed) as error:
            raise Corrupt(f"no readable certificate authority in {folder}") from error

    def issue(
        self, csr_der: bytes, subject_id: str, role: Role, *, now: float, valid_for_s: float, hosts: Iterable[str] = ()
    ) -> bytes:
        """A certificate for the request's key, DER. Nothing else in the request is believed.

        Raises what `check_csr` raises.
        """
        request = check_csr(csr_der)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject_id[:64])])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{_PREFIX}{role}/{subject_id}")]
        names += [_host_name(host) for host in hosts]
        usage = ExtendedKeyUsageOID.SERVER_AUTH if role == "coordinator" else ExtendedKeyUsageOID.CLIENT_AUTH
        issuer_key = self._certificate.public_key()
        assert isinstance(issuer_key, ec.EllipticCurvePublicKey)  # noqa: S101  # we made it so
        certificate = (
            _builder(name, self._certificate.subject, request.public_key, now - BACKDATE_S, now + valid_for_s)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)


def verify_certificate(ca_der: bytes, certificate_der: bytes, now: float) -> Subject:
    """Who this certificate speaks for at `now`. Raises `SignatureInvalid`, which says what is wrong with it."""
    subject = issued_to(ca_der, certificate_der)
    check_time(subject, now)
    return subject


def check_time(subject: Subject, now: float) -> None:
    """Raises `SignatureInvalid` for a certificate that does not count yet, or no longer."""
    if now < subject.issued_at:
        raise SignatureInvalid("the certificate is not valid yet; check the clock")
    if now > subject.expires_at:
        raise SignatureInvalid("the certificate has expired; enrol again")


def issued_to(ca_der: bytes, certificate_der: bytes) -> Subject:
    """Whom the authority gave this certificate, at whatever time. Raises `SignatureInvalid`, `Malformed`."""
    certificate, authority = _parse(certificate_der), _authority(ca_der)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise SignatureInvalid("the certificate was not issued by this fleet's authority") from error
    issued, expires = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    role, subject_id = _subject(certificate)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SignatureInvalid("the certificate's key is not on the curve P-256")
    return Subject(role, subject_id, key, issued, expires)


def public_key_of(certificate_der: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a certificate, unverified. Raises `Malformed`."""
    key = _parse(certificate_der).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Malformed("the certificate's key is not on the curve P-256")
    return key


def issued_at(certificate_der: bytes) -> float:
    """When it began to count, seconds since the epoch. Raises `Malformed`."""
    return _parse(certificate_der).not_valid_before_utc.timestamp()


def _subject(certificate: x509.Certificate) -> tuple[Role, str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise SignatureInvalid("the certificate names no subject of this fleet") from error
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(_PREFIX)]
    role, _, subject_id = uris[0].removeprefix(_PREFIX).partition("/") if len(uris) == 1 else ("", "", "")
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if role == "coordinator" else ExtendedKeyUsageOID.CLIENT_AUTH
    if role not in _ROLES or not subject_id or wanted not in usages or constraints.ca:
        raise SignatureInvalid("the certificate is not for this use")
    return role, subject_id  # type: ignore[return-value]  # checked against Role above


@lru_cache(maxsize=4)
def _authority(ca_der: bytes) -> x509.Certificate:
    """It is read once, and its key once: a process knows one fleet, and many certificates of it."""
    return _parse(ca_der)


def _parse(certificate_der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(certificate_der)
    except ValueError as error:
        raise Malformed("not a certificate") from error


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: float, end: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(start, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(end, datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
