"""Keys and what is made from them: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM, and the identity ports.

Every derived key binds a purpose, the round's terms and both parties' device names, each with its length in front, so
no key can serve another purpose, round or pair. `Secret` keeps key material out of `repr`, logs and pickles.
"""

import hashlib
import hmac
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import ProtocolError, SignatureInvalid

KEY_BYTES = 32
NONCE_BYTES = 12
PROTOCOL = "shoal.secagg.v1"


class Secret:
    """Bytes that never show: not in `repr`, not in a pickle. `reveal` is the one way in."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return f"<secret of {len(self._value)} bytes>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def bind(*fields: str | int | bytes) -> bytes:
    """Fields as one byte string that parses only one way: a type letter, the length, the bytes."""
    out = bytearray()
    for item in fields:
        kind, raw = _raw(item)
        out += kind + len(raw).to_bytes(4, "big") + raw
    return bytes(out)


def _raw(item: str | int | bytes) -> tuple[bytes, bytes]:
    if isinstance(item, str):
        return b"s", item.encode()
    if isinstance(item, int):
        return b"i", str(item).encode()
    return b"b", item


def hkdf(secret: Secret, info: bytes, *, salt: bytes = b"", length: int = KEY_BYTES) -> Secret:
    """HKDF-SHA256, extract and expand."""
    return Secret(HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret.reveal()))


def digest(*fields: str | int | bytes) -> bytes:
    """SHA-256 over bound fields. Hides what it commits to when one field is a uniform 256-bit value."""
    return hashlib.sha256(bind(PROTOCOL, *fields)).digest()


@dataclass(frozen=True)
class KeyPair:
    private: Secret = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> "KeyPair":
        return cls.from_private(Secret(entropy(KEY_BYTES)))

    @classmethod
    def from_private(cls, private: Secret) -> "KeyPair":
        key = X25519PrivateKey.from_private_bytes(private.reveal())
        return cls(private, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def agree(self, peer: bytes) -> Secret:
        """The X25519 shared secret. Raises `ProtocolError` for a public key of small order (RFC 7748, section 6.1)."""
        try:
            key = X25519PrivateKey.from_private_bytes(self.private.reveal())
            return Secret(key.exchange(X25519PublicKey.from_public_bytes(peer)))
        except ValueError as error:
            raise ProtocolError("a peer's public key cannot be used for key agreement") from error


def pair_mask_key(pair: KeyPair, peer: bytes, terms: bytes, one: str, other: str) -> Secret:
    """The AES key of the mask that two devices share; the same from either side."""
    low, high = sorted((one, other))
    return hkdf(pair.agree(peer), bind(PROTOCOL, "pairwise mask", terms, low, high))


def self_mask_key(seed: Secret, terms: bytes, device: str) -> Secret:
    return hkdf(seed, bind(PROTOCOL, "self mask", terms, device))


def share_key(pair: KeyPair, peer: bytes, terms: bytes, sender: str, recipient: str) -> Secret:
    """The AEAD key for shares that go from `sender` to `recipient`; the way back has another."""
    return hkdf(pair.agree(peer), bind(PROTOCOL, "share encryption", terms, sender, recipient))


def seal(key: Secret, plain: bytes, associated: bytes, entropy: Callable[[int], bytes]) -> bytes:
    """AES-256-GCM; the nonce goes in front."""
    nonce = entropy(NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plain, associated)


def unseal(key: Secret, box: bytes, associated: bytes) -> bytes:
    """Raises `ProtocolError` if the box was changed, or made for another round, sender or recipient."""
    try:
        return AESGCM(key.reveal()).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError) as error:
        raise ProtocolError("sealed shares do not open") from error


class Identity(Protocol):
    """A device's long-lived key, held by whoever guards it."""

    @property
    def device(self) -> str: ...

    @property
    def certificate(self) -> bytes: ...

    def sign(self, data: bytes) -> bytes: ...


class Verifier(Protocol):
    def verify(self, certificate: bytes, signature: bytes, data: bytes) -> str:
        """The device that signed `data`. Raises `SignatureInvalid` for a bad signature or chain."""
        ...


class InsecureWarning(UserWarning):
    """Something runs without the protection it is there for."""


class UnsignedIdentity:
    """A device that only says who it is. For simulations on one machine."""

    def __init__(self, device: str) -> None:
        warnings.warn("keys are not signed: a server could put itself in the middle", InsecureWarning, stacklevel=2)
        self.device = device
        self.certificate = device.encode()

    def sign(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest()


class UnsignedVerifier:
    """Believes any device. The twin of `UnsignedIdentity`."""

    def __init__(self) -> None:
        warnings.warn(
            "signatures are not checked: a server could put itself in the middle", InsecureWarning, stacklevel=2
        )

    def verify(self, certificate: bytes, signature: bytes, data: bytes) -> str:
        if signature != hashlib.sha256(data).digest():
            raise SignatureInvalid("the checksum in place of a signature does not match")
        try:
            return certificate.decode()
        except UnicodeDecodeError as error:
            raise SignatureInvalid("not a device name in place of a certificate") from error
