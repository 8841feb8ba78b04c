"""Join tokens: single-use, expiring, and naming the fleet's authority so that the first contact is authentic both ways.

    shoal1.BASE64URL(id 8 bytes ‖ secret 16 bytes ‖ SHA-256 of the CA certificate 32 bytes ‖ checksum 4 bytes)

The checksum catches a token that lost a character on its way; it protects nothing. The coordinator stores only the secret's hash.
"""

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field

from shared.errors import Malformed
from shared.ids import digest_of

PREFIX = "shoal1."
_LENGTH = 8 + 16 + 32 + 4


@dataclass(frozen=True)
class JoinToken:
    """`secret` stays out of `repr`; `text` is what a person copies."""

    id: str
    fingerprint: str  # lower-case hex SHA-256 of the CA certificate
    secret: bytes = field(repr=False)

    @classmethod
    def create(cls, fingerprint: str) -> "JoinToken":
        return cls(secrets.token_hex(8), fingerprint, secrets.token_bytes(16))

    @property
    def secret_sha256(self) -> str:
        return digest_of(self.secret)

    @property
    def text(self) -> str:
        body = bytes.fromhex(self.id) + self.secret + bytes.fromhex(self.fingerprint)
        return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Raises `Malformed`, which says what happened to it."""
        text = text.strip()
        if not text.startswith(PREFIX):
            raise Malformed("not a join token: it begins with shoal1.")
        encoded = text.removeprefix(PREFIX)
        try:
            raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise Malformed("the join token holds characters that no token has; copy it again") from error
        if len(raw) != _LENGTH:
            raise Malformed("the join token is cut off or too long; copy it again")
        body, checksum = raw[:-4], raw[-4:]
        if _checksum(body) != checksum:
            raise Malformed("the join token was changed on its way; copy it again")
        return cls(body[:8].hex(), body[24:].hex(), body[8:24])


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"shoal join token" + body).digest()[:4]
