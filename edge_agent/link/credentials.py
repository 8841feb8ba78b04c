"""The device's key and certificate on disk, and their renewal without a restart.

    identity/authority.der  root.json  enrolment.json      as learned at enrolment
    identity/current → pair-XXXX/{key.pem, certificate.der}

A renewed pair becomes current by one rename. Until its certificate is first used the coordinator still accepts the former key,
so a crash or a lost answer anywhere in between locks nobody out.
"""

import json
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.clock import Clock
from shared.errors import ConfigError, Corrupt, NotFound
from shared.files import fsync_folder, write_atomic
from shared.ids import DeviceId
from shared.settings import from_mapping
from shared.signing.certificates import generate_key, issued_at, make_csr, verify_certificate
from shared.signing.identity import CERTIFICATE_FILE, DeviceIdentity

RENEW_AT = 2 / 3  # of a certificate's life
_CURRENT, _AUTHORITY, _ROOT, _ENROLMENT = "current", "authority.der", "root.json", "enrolment.json"


@dataclass(frozen=True)
class Membership:
    """What the coordinator said at enrolment."""

    device: str
    name: str
    fleet_address: str
    labels: dict[str, str] = field(default_factory=dict)


class Credentials:
    """One device's identity folder. `identity` is the present pair."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Raises `NotFound` before enrolment, `Corrupt` for a damaged folder."""
        if not (folder / _ENROLMENT).exists():
            raise NotFound(
                "this device is not enrolled; run `edge-agent enroll --coordinator HOST:PORT --name NAME --token-file FILE`"
            )
        self._folder = folder
        self._clock = clock
        try:
            self.ca_der = (folder / _AUTHORITY).read_bytes()
            self.root_json = (folder / _ROOT).read_bytes()
            self.membership = from_mapping(Membership, json.loads((folder / _ENROLMENT).read_text(encoding="utf-8")))
        except (OSError, ValueError, ConfigError) as error:
            raise Corrupt(f"{folder} is damaged; enrol again", detail=str(error)[:200]) from error
        self.identity = DeviceIdentity.load(folder / _CURRENT, self.ca_der)

    def __repr__(self) -> str:
        return f"Credentials({self.device})"

    @property
    def device(self) -> DeviceId:
        return DeviceId(self.identity.device)

    def renew_at(self) -> float:
        """When to renew, in seconds since the epoch."""
        certificate = self.identity.certificate
        subject = verify_certificate(self.ca_der, certificate, issued_at(certificate))
        return subject.issued_at + RENEW_AT * (subject.expires_at - subject.issued_at)

    def renewal(self) -> "Renewal":
        """A fresh key and a request for it; nothing changes before `adopt`."""
        key = generate_key()
        return Renewal(self, DeviceIdentity(self.device, key, b""), make_csr(key, self.device))

    def _adopt(self, identity: DeviceIdentity) -> None:
        """Raises `SignatureInvalid` for a certificate that is not this fleet's, now, for this device and key."""
        store_pair(self._folder, identity, self.ca_der)
        self.identity = identity


class Renewal:
    """A pair on its way. `repr` shows nothing."""

    def __init__(self, credentials: Credentials, identity: DeviceIdentity, csr_der: bytes) -> None:
        self._credentials = credentials
        self._identity = identity
        self.csr_der = csr_der

    def adopt(self, certificate_der: bytes) -> None:
        """Use it from now on. Raises `SignatureInvalid`, `Malformed`, `Corrupt`; the present pair then stays."""
        now = self._credentials._clock.now()  # two halves of one thing
        verify_certificate(self._credentials.ca_der, certificate_der, now)
        self._identity.certificate = certificate_der
        self._credentials._adopt(self._identity)


def store_identity(folder: Path, identity: DeviceIdentity, ca_der: bytes) -> None:
    """An identity folder for a device that is enrolled with no coordinator: enough for secure aggregation, not for a session."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(folder / _AUTHORITY, ca_der)
    store_pair(folder, identity, ca_der)


def store_pair(folder: Path, identity: DeviceIdentity, ca_der: bytes) -> None:
    """Make a pair current by one rename. Raises `Corrupt` when key and certificate do not belong together, `StorageFull`."""
    place = folder / f"pair-{secrets.token_hex(4)}"
    place.mkdir(mode=0o700, parents=True)
    try:
        identity.save(place)
        DeviceIdentity.load(place, ca_der)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    link = folder / f".{place.name}"
    link.symlink_to(place.name)
    link.replace(folder / _CURRENT)
    fsync_folder(folder)
    for old in folder.glob("pair-*"):
        if old.name != place.name:
            shutil.rmtree(old, ignore_errors=True)


def store_membership(folder: Path, membership: Membership, ca_der: bytes, root_json: bytes) -> None:
    """Written last: a folder with this file is an enrolled device's."""
    write_atomic(folder / _AUTHORITY, ca_der)
    write_atomic(folder / _ROOT, root_json)
    write_atomic(folder / _ENROLMENT, json.dumps(asdict(membership), sort_keys=True).encode())


def is_enrolled(folder: Path) -> bool:
    return (folder / _ENROLMENT).exists() and (folder / _CURRENT / CERTIFICATE_FILE).exists()
