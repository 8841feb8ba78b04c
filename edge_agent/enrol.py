"""Joining a fleet: key made here, authority checked against the token, certificate stored. May be repeated at any point."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.config import Home, check_address
from edge_agent.device_profile import PROFILE_FILE, read_profile, to_report
from edge_agent.link.credentials import Credentials, Membership, is_enrolled, store_membership, store_pair
from edge_agent.link.enrolment import Application, Issued, Pending, apply, fetch_authority
from shared.clock import Clock
from shared.errors import Conflict, InputError, NotFound
from shared.files import write_atomic
from shared.ids import digest_of, parse_name
from shared.signing.certificates import generate_key, load_key, make_csr, save_key, verify_certificate
from shared.signing.identity import DeviceIdentity
from shared.signing.tokens import JoinToken

_KEY_IN_WAITING = "enrolling.key.pem"


@dataclass(frozen=True)
class Wish:
    """What `edge-agent enroll` was asked for. `profile`: a TOML file that describes the device; None: what is there, or generic."""

    token: JoinToken
    coordinator: str  # HOST:PORT of enrolment
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    profile: Path | None = None

    def __post_init__(self) -> None:
        for name in (self.name, *self.labels):
            parse_name(name)
        try:
            check_address(self.coordinator, "--coordinator")
        except ValueError as error:
            raise InputError(str(error)) from error


def enrol(home: Home, wish: Wish, clock: Clock) -> Iterator[Membership | Pending]:
    """Yields `Pending` while an admin has not approved (ask for the next item to try again), then the membership.

    Raises `Conflict` when this home belongs to another device, `Unauthenticated` for a coordinator or token that is not the
    right one, what the coordinator answers, and `Unavailable`.
    """
    if is_enrolled(home.identity):
        yield _again(home, wish, clock)
        return
    home.prepare()
    if wish.profile is not None:
        read_profile(wish.profile)
        write_atomic(home.path / PROFILE_FILE, wish.profile.read_bytes())
    profile = read_profile(home.path / PROFILE_FILE)
    waiting = home.identity / _KEY_IN_WAITING
    if not waiting.exists():  # the token is bound to the first key that it is used with
        save_key(waiting, generate_key())
    key = load_key(waiting)
    ca_der = fetch_authority(wish.coordinator, wish.token)
    application = Application(wish.token, make_csr(key, wish.name), wish.name, wish.labels, to_report(profile))
    while isinstance(answer := apply(wish.coordinator, ca_der, application), Pending):
        yield answer
    membership = _store(home, wish, answer, ca_der, clock)
    waiting.unlink(missing_ok=True)
    yield membership


def wait_for(answers: Iterator[Membership | Pending], pause: Callable[[], None]) -> Membership:
    """Ask until there is a membership; `pause` is called before each repetition."""
    for answer in answers:
        if isinstance(answer, Membership):
            return answer
        pause()
    raise NotFound("the coordinator gave no answer")


def _store(home: Home, wish: Wish, issued: Issued, ca_der: bytes, clock: Clock) -> Membership:
    subject = verify_certificate(ca_der, issued.certificate_der, clock.now())
    identity = DeviceIdentity(subject.id, load_key(home.identity / _KEY_IN_WAITING), issued.certificate_der)
    membership = Membership(subject.id, wish.name, issued.fleet_address, dict(wish.labels))
    store_pair(home.identity, identity, ca_der)
    store_membership(home.identity, membership, ca_der, issued.tuf_root_json)
    return membership


def _again(home: Home, wish: Wish, clock: Clock) -> Membership:
    """Enrolled already: fine if it is the same fleet and name."""
    credentials = Credentials(home.identity, clock)
    membership = credentials.membership
    if digest_of(credentials.ca_der) != wish.token.fingerprint or membership.name != wish.name:
        raise Conflict(
            f"{home.path} belongs to device {membership.name} of a fleet already; use another --home, or remove it first"
        )
    return membership


__all__ = ["Pending", "Wish", "enrol", "wait_for"]
