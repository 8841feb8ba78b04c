"""Admins from afar: whom the Admin service believes without the Unix socket. Their keys are made where they work."""

import math
from dataclasses import replace

from coordinator.fleet.device import Admin, AuditEntry
from coordinator.fleet.ports import AdminStore
from shared.clock import Clock
from shared.errors import Conflict, Forbidden, InputError, NotFound, Unauthenticated
from shared.ids import parse_name
from shared.signing.certificates import Authority, Subject, check_csr

MAX_VALID_S = 366 * 86_400.0


class Admins:
    """Synchronous and safe to call from threads. A name stands for one key at a time."""

    def __init__(self, store: AdminStore, authority: Authority, clock: Clock) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock

    def issue(self, name: str, csr_der: bytes, valid_for_s: float, actor: str) -> tuple[Admin, bytes]:
        """The admin and a certificate for the request's key, DER.

        Raises `Malformed` and `SignatureInvalid` for a name or request that is none, `InputError` for an impossible life,
        `Conflict` while a certificate of that name counts or for another admin's key.
        """
        parse_name(name)
        key, now = check_csr(csr_der).public_key_sha256, self._clock.now()
        if not (math.isfinite(valid_for_s) and 0 < valid_for_s <= MAX_VALID_S):
            raise InputError(f"an admin's certificate is valid for up to {MAX_VALID_S / 86_400:.0f} days")
        certificate = self._authority.issue(csr_der, name, "admin", now=now, valid_for_s=valid_for_s)

        def decide(found: Admin | None) -> tuple[Admin, AuditEntry]:
            if found is not None and not found.revoked_at and found.expires_at > now:
                raise Conflict(f"admin {name} has a certificate; revoke it first: `coordinator admin revoke {name}`")
            detail = {"valid_for_s": f"{valid_for_s:.0f}"}
            return Admin(name, key, now, now + valid_for_s), AuditEntry(now, actor, "admin.issue", name, detail)

        return self._store.change_admin(name, decide), certificate

    def revoke(self, name: str, actor: str) -> Admin:
        """From the next message on. Doing it again changes nothing. Raises `NotFound`."""
        now = self._clock.now()

        def decide(found: Admin | None) -> tuple[Admin, AuditEntry | None]:
            if found is None:
                raise NotFound(f"no admin {name[:64]!r}; `coordinator admin list` shows them")
            if found.revoked_at:
                return found, None
            return replace(found, revoked_at=now), AuditEntry(now, actor, "admin.revoke", name)

        return self._store.change_admin(name, decide)

    def admins(self) -> list[Admin]:
        """By name, revoked and expired ones too."""
        return self._store.admins()

    def admit(self, subject: Subject) -> Admin:
        """The admin behind a verified certificate, if they may speak now.

        Raises `Unauthenticated` for one that was never issued here or was replaced, `Forbidden` for a revoked one.
        """
        found = self._store.admin(subject.id)
        if found is None or found.public_key_sha256 != subject.public_key_sha256:
            raise Unauthenticated("no such admin in this fleet; ask for a certificate: `coordinator admin issue`")
        if found.revoked_at:
            raise Forbidden(f"admin {found.name} was revoked")
        return found
