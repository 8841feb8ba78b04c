"""Keys and what is made from them: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM, and the identity ports.

Every derived key binds a purpose, the group and both parties' device names, each with its length in front, and a mask's key the
round's terms as well: no key can serve another purpose, round or pair. `Secret` keeps key material out of `repr`, logs and
pickles.
"""

import hashlib
import hmac
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import ProtocolError, SignatureInvalid

KEY_BYTES = 32
TAG_BYTES = 16
PROTOCOL = "shoal.secagg.v4"
_NONCE = bytes(12)


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
    return b"".join([_bound(item) for item in fields])


def _bound(item: str | int | bytes) -> bytes:
    if isinstance(item, bytes):
        return b"b%d:%b" % (len(item), item)
    raw = str(item).encode()
    return b"%b%d:%b" % (b"s" if isinstance(item, str) else b"i", len(raw), raw)


def extract(secret: Secret, salt: bytes) -> Secret:
    """HKDF-Extract (RFC 5869, 2.2): a uniform key from a shared secret."""
    return Secret(hmac.digest(salt, secret.reveal(), "sha256"))


def expand(key: Secret, info: bytes) -> Secret:
    """HKDF-Expand (RFC 5869, 2.3) to 32 bytes, which is one block."""
    return Secret(hmac.digest(key.reveal(), info + b"\x01", "sha256"))


def digest(*fields: str | int | bytes) -> bytes:
    """SHA-256 over bound fields. Hides what it commits to when one field is a uniform 256-bit value."""
    return hashlib.sha256(bind(PROTOCOL, *fields)).digest()


def digests(fields: Iterable[str | int | bytes], last: Iterable[bytes]) -> list[bytes]:
    """`digest(*fields, item)` of each item of `last`."""
    begun, found = hashlib.sha256(bind(PROTOCOL, *fields)), []
    for item in last:
        ending = begun.copy()
        ending.update(bind(item))
        found.append(ending.digest())
    return found


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
        return self.agreements([peer])[0]

    def agreements(self, peers: Iterable[bytes]) -> list[Secret]:
        """One shared secret for each of `peers`. Reading the private key costs more than an agreement, so it is read once."""
        key = X25519PrivateKey.from_private_bytes(self.private.reveal())
        try:
            return [Secret(key.exchange(X25519PublicKey.from_public_bytes(peer))) for peer in peers]
        except ValueError as error:
            raise ProtocolError("a peer's public key cannot be used for key agreement") from error


def pair_root(agreed: Secret, binding: bytes, one: str, other: str) -> Secret:
    """The root of all that two devices share in a group; the same from either side."""
    low, high = sorted((one, other))
    return extract(agreed, bind(PROTOCOL, "pair", binding, low, high))


def mask_secrets(roots: Iterable[Secret], number: int) -> list[Secret]:
    """Of pairs in the group's round `number`. Whoever knows one can take that pair's mask out of that round, and of no other."""
    info = bind("pairwise mask", number)
    return [expand(root, info) for root in roots]


def mask_keys(terms: bytes) -> tuple[Callable[[Secret], Secret], Callable[[Secret], Secret]]:
    """Two ways to an AES key, bound to everything that a round agreed on: from a client's seed, and from a pair's `mask_secret`."""
    own, pairwise = bind(PROTOCOL, "self mask", terms), bind(PROTOCOL, "pairwise mask", terms)
    return lambda seed: expand(seed, own), lambda secret: expand(secret, pairwise)


def letter_key(root: Secret, sender: str) -> Secret:
    """For the one letter from `sender` to the other of a pair."""
    return expand(root, bind("letter", sender))


def witness_key(root: Secret, sender: str) -> Secret:
    """For `sender`'s word to the other of a pair about who was counted."""
    return expand(root, bind("witness", sender))


def tag(key: Secret, data: bytes) -> bytes:
    """HMAC-SHA256, cut to 128 bits (RFC 2104, 5)."""
    return hmac.digest(key.reveal(), data, "sha256")[:TAG_BYTES]


def is_tag(word: bytes, key: Secret, data: bytes) -> bool:
    """Takes as long for a wrong one as for the right one."""
    return hmac.compare_digest(word, tag(key, data))


def seal(key: Secret, plain: Secret) -> bytes:
    """AES-256-GCM. The nonce is zero and nothing is associated: a key seals one box, and is bound to all that matters."""
    return AESGCM(key.reveal()).encrypt(_NONCE, plain.reveal(), None)


def unseal(key: Secret, box: bytes) -> Secret:
    """Raises `ProtocolError` if the box was changed, or made for another group, sender or recipient."""
    try:
        return Secret(AESGCM(key.reveal()).decrypt(_NONCE, box, None))
    except (InvalidTag, ValueError) as error:
        raise ProtocolError("a sealed box does not open") from error


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
