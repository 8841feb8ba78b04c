"""A device's identity: its key and its certificate, for TLS and for signing round keys and receipts."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from shared.errors import Corrupt, Malformed, SignatureInvalid
from shared.files import write_atomic
from shared.signing.certificates import (
    Authority,
    check_time,
    generate_key,
    issued_at,
    issued_to,
    key_to_pem,
    load_key,
    make_csr,
    public_key_of,
    save_key,
    to_pem,
    verify_certificate,
)

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "certificate.der"
_SCHEME = ec.ECDSA(hashes.SHA256())
_REMEMBERED = 2048  # certificates, of some KB each


class DeviceIdentity:
    """Signs with ECDSA on P-256 with SHA-256 (FIPS 186-5). The key never shows in `repr`."""

    def __init__(self, device: str, key: ec.EllipticCurvePrivateKey, certificate_der: bytes) -> None:
        self.device = device
        self.certificate = certificate_der
        self._key = key

    @classmethod
    def create(cls, authority: Authority, device: str, *, now: float, valid_for_s: float) -> "DeviceIdentity":
        """A new key and its certificate, where one hand holds the authority's key and the device's."""
        key = generate_key()
        return cls(
            device, key, authority.issue(make_csr(key, device), device, "device", now=now, valid_for_s=valid_for_s)
        )

    def __repr__(self) -> str:
        return f"DeviceIdentity({self.device})"

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, _SCHEME)

    @property
    def key_pem(self) -> bytes:
        """For the TLS library, which takes nothing else."""
        return key_to_pem(self._key)

    @property
    def certificate_pem(self) -> bytes:
        return to_pem(self.certificate)

    def save(self, folder: Path) -> None:
        """The key first: a certificate without its key is worth nothing."""
        save_key(folder / KEY_FILE, self._key)
        write_atomic(folder / CERTIFICATE_FILE, self.certificate)

    @classmethod
    def load(cls, folder: Path, ca_der: bytes) -> "DeviceIdentity":
        """Raises `Corrupt` when the folder holds no matching key and certificate of this fleet. Expiry is not checked here."""
        key = load_key(folder / KEY_FILE)
        try:
            certificate = (folder / CERTIFICATE_FILE).read_bytes()
            subject = verify_certificate(ca_der, certificate, issued_at(certificate))
        except (OSError, Malformed, SignatureInvalid) as error:
            raise Corrupt(f"no usable certificate in {folder}; enrol again", detail=str(error)) from error
        if public_key_of(certificate).public_numbers() != key.public_key().public_numbers():
            raise Corrupt(f"key and certificate in {folder} do not belong together; enrol again")
        return cls(subject.id, key, certificate)


class FleetVerifier:
    """Believes signatures of devices that the fleet's authority vouches for at the time `now()` gives.

    It remembers certificates that the authority issued: a device meets the same peers in every group.
    """

    def __init__(self, ca_der: bytes, now: Callable[[], float]) -> None:
        self._issued_to = lru_cache(maxsize=_REMEMBERED)(lambda der: issued_to(ca_der, der))
        self._now = now

    def verify(self, certificate: bytes, signature: bytes, data: bytes) -> str:
        """The device that signed `data`. Raises `SignatureInvalid`."""
        try:
            subject = self._issued_to(certificate)
            check_time(subject, self._now())
            if subject.role != "device":
                raise SignatureInvalid(f"signed by a certificate of role {subject.role}, not by a device")
            subject.public_key.verify(signature, data, _SCHEME)
        except Malformed as error:
            raise SignatureInvalid("signed with something that is not a certificate") from error
        except InvalidSignature as error:
            raise SignatureInvalid("the signature does not match what was signed") from error
        return subject.id
