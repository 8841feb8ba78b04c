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
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import ProtocolError, SignatureInvalid

KEY_BYTES = 32
TAG_BYTES = 16
PROTOCOL = "shoal.secagg.v4"
_NONCE = bytes(12)
_SHA256 = SHA256()


class Secret:
    """Bytes that never show: not in `repr`, not in a pickle. `reveal` is the one way in."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value if isinstance(value, bytes) else bytes(value)

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
    bound = []
    for item in fields:  # a function for one of them would cost as much as the rest
        if isinstance(item, bytes):
            bound.append(b"b%d:%b" % (len(item), item))
        else:
            raw = str(item).encode()
            bound.append((b"s%d:%b" if isinstance(item, str) else b"i%d:%b") % (len(raw), raw))
    return b"".join(bound)


_PROTOCOL = bind(PROTOCOL)


def bind_each(items: Iterable[bytes]) -> list[bytes]:
    """`bind(item)` of each of them."""
    return [b"b%d:%b" % (len(item), item) for item in items]


def extract(secret: Secret, salt: bytes) -> Secret:
    """HKDF-Extract (RFC 5869, 2.2): a uniform key from a shared secret."""
    return Secret(hmac.digest(salt, secret.reveal(), "sha256"))


def expand(key: Secret, info: bytes) -> Secret:
    """HKDF-Expand (RFC 5869, 2.3) to 32 bytes, which is one block."""
    return Secret(hmac.digest(key.reveal(), info + b"\x01", "sha256"))


class Root(Secret):
    """A key that a dozen others are expanded from: to set HMAC up for it costs more than to use it, so that is done once."""

    __slots__ = ("_begun",)

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._begun = HMAC(self._value, _SHA256)

    def expand(self, info: bytes) -> Secret:
        """As the function of this name."""
        return Secret(self._blocks([info])[0])

    def _blocks(self, infos: Iterable[bytes]) -> list[bytes]:
        found = []
        for info in infos:
            block = self._begun.copy()
            block.update(info + b"\x01")
            found.append(block.finalize())
        return found


def digest(*fields: str | int | bytes, ending: bytes = b"") -> bytes:
    """SHA-256 over bound fields, of which `ending` are the last. Hides what it commits to when one is a uniform 256-bit value."""
    return hashlib.sha256(_PROTOCOL + bind(*fields) + ending).digest()


def digests(*fields: str | int | bytes, endings: Iterable[bytes]) -> list[bytes]:
    """`digest(*fields, ending=ending)` for each of `endings`."""
    begun, found = hashlib.sha256(_PROTOCOL + bind(*fields)), []
    for ending in endings:
        ended = begun.copy()
        ended.update(ending)
        found.append(ended.digest())
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


def pair_root(agreed: Secret, binding: bytes, one: str, other: str) -> Root:
    """The root of all that two devices share in a group; the same from either side."""
    return pair_roots([agreed], binding, one, [other])[0]


def pair_roots(agreed: Iterable[Secret], binding: bytes, own: str, others: Iterable[str]) -> list[Root]:
    """Of one device with each of `others`, whose agreements with it are in their order."""
    begun, mine, found = _PROTOCOL + bind("pair", binding), bind(own), []
    for secret, other in zip(agreed, others, strict=True):
        theirs = bind(other)
        names = mine + theirs if own < other else theirs + mine
        found.append(Root(extract(secret, begun + names).reveal()))
    return found


def mask_secrets(roots: Iterable[Root], numbers: Iterable[int]) -> list[Secret]:
    """Of the group's rounds of these numbers: each round's for all of the pairs, end to end. Whoever knows one can take that pair's
    mask out of that round, and of no other.
    """
    infos = [bind("pairwise mask", number) for number in numbers]
    by_pair = [root._blocks(infos) for root in roots]
    return [Secret(b"".join(row)) for row in zip(*by_pair, strict=True)]


def mask_keys(terms: bytes) -> tuple[Callable[[Secret], Secret], Callable[[Secret], Secret]]:
    """Two ways to an AES key, bound to everything that a round agreed on: from a client's seed, and from a pair's `mask_secret`."""
    own, pairwise = bind(PROTOCOL, "self mask", terms), bind(PROTOCOL, "pairwise mask", terms)
    return lambda seed: expand(seed, own), lambda secret: expand(secret, pairwise)


def letter_key(root: Root, sender: str) -> Secret:
    """For the one letter from `sender` to the other of a pair."""
    return root.expand(bind("letter", sender))


def witness_key(root: Root, sender: str) -> Secret:
    """For `sender`'s word to the other of a pair about who was counted."""
    return root.expand(bind("witness", sender))


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
