"""A fleet's authority, and certificates made wrong in one way each."""

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.signing.certificates import Authority, Role, generate_key, make_csr
from shared.signing.identity import DeviceIdentity

NOW = 1_700_000_000.0
DAY_S = 86_400.0
AUTHORITY = Authority.create("test", NOW)


def issue(
    role: Role = "device", subject: str = "dev-1", *, authority: Authority = AUTHORITY, now: float = NOW
) -> bytes:
    return authority.issue(make_csr(generate_key(), subject), subject, role, now=now, valid_for_s=90 * DAY_S)


def identity(device: str = "dev-1", authority: Authority = AUTHORITY) -> DeviceIdentity:
    key = generate_key()
    certificate = authority.issue(make_csr(key, device), device, "device", now=NOW, valid_for_s=90 * DAY_S)
    return DeviceIdentity(device, key, certificate)


def handmade(
    uris: Sequence[str] = ("shoal://device/dev-1",),
    *,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    is_authority: bool = False,
    extensions: bool = True,
    curve: ec.EllipticCurve | None = None,
) -> bytes:
    """What only the holder of the authority's key can make, and never does."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-1")])
    issuer = x509.load_der_x509_certificate(AUTHORITY.certificate_der).subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime.fromtimestamp(NOW, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(NOW + DAY_S, datetime.UTC))
    )
    if extensions:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
    certificate = builder.sign(AUTHORITY._key, hashes.SHA256())  # a test may
    return certificate.public_bytes(serialization.Encoding.DER)
