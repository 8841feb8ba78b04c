"""An admin's profile: a folder with what is needed to command a coordinator from afar."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError, Conflict
from shared.files import write_atomic
from shared.ids import parse_name
from shared.settings import load_toml
from shared.signing.certificates import generate_key, key_to_pem, load_key, make_csr, save_key, to_pem

if TYPE_CHECKING:
    from protos.fleet.v1.admin_pb2 import IssueAdminResponse

FILE = "admin.toml"
KEY, CERTIFICATE, AUTHORITY = "key.pem", "certificate.pem", "ca.pem"


@dataclass(frozen=True)
class Profile:
    """What `admin.toml` says; the key, the certificate and the fleet's authority lie beside it."""

    name: str
    fleet_address: str  # host:port
    expires_at: float  # of the certificate, seconds since the epoch


@dataclass(frozen=True)
class Credentials:
    """PEM, as the TLS library takes it."""

    profile: Profile
    key: bytes
    certificate: bytes
    authority: bytes

    def __repr__(self) -> str:
        return f"Credentials({self.profile.name})"


def begin(folder: Path, name: str) -> bytes:
    """Make a key in `folder` and return the request for its certificate. Raises `Malformed` for a name that is none, `Conflict`
    where there is a profile.
    """
    parse_name(name)
    if (folder / FILE).exists():
        raise Conflict(f"{folder} holds an admin's profile already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = generate_key()
    save_key(folder / KEY, key)
    return make_csr(key, name)


def finish(folder: Path, name: str, answer: "IssueAdminResponse") -> None:
    """Write what the coordinator answered; `admin.toml` comes last, so that a profile is whole or none."""
    write_atomic(folder / CERTIFICATE, to_pem(answer.certificate_der))
    write_atomic(folder / AUTHORITY, to_pem(answer.ca_certificate_der))
    lines = (f'name = "{name}"', f'fleet_address = "{answer.fleet_address}"', f"expires_at = {answer.expires_at}")
    write_atomic(folder / FILE, "\n".join(lines).encode() + b"\n")


def load(folder: Path) -> Credentials:
    """Raises `ConfigError` where there is no whole profile, `Corrupt` for a key that is none."""
    if not (folder / FILE).exists():
        raise ConfigError(f"no admin's profile in {folder}: make one with `coordinator admin issue NAME --out FOLDER`")
    profile = load_toml(Profile, folder / FILE)
    key = key_to_pem(load_key(folder / KEY))
    try:
        certificate, authority = (folder / CERTIFICATE).read_bytes(), (folder / AUTHORITY).read_bytes()
    except OSError as error:
        raise ConfigError(f"the profile is not whole: {error}", path=str(folder)) from error
    return Credentials(profile, key, certificate, authority)
