"""How release metadata is signed and written, one file at a time: the pen; `repository` decides what to write."""

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from shared.errors import Corrupt
from shared.files import write_atomic
from shared.signing.certificates import generate_key, load_key, save_key

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
DAY_S = 86_400.0
Writer = Callable[[Path, bytes], None]
S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True)
class RoleRule:
    """How many keys a role has, how many of them must sign, and for how long that holds."""

    valid_for_s: float
    keys: int = 1
    threshold: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= self.keys or self.valid_for_s <= 0:
            raise ValueError(
                "a role has at least as many keys as must sign, and its metadata lives for a positive time"
            )

    def expiry(self, now: float) -> datetime.datetime:
        """TUF times have whole seconds."""
        return datetime.datetime.fromtimestamp(int(now + self.valid_for_s), datetime.UTC)


def default_rules() -> dict[str, RoleRule]:
    return {
        "root": RoleRule(365 * DAY_S),
        "targets": RoleRule(90 * DAY_S),
        "snapshot": RoleRule(7 * DAY_S),
        "timestamp": RoleRule(1 * DAY_S),
    }


@dataclass(frozen=True)
class Places:
    """`root_keys` may be a medium that is only there when the root changes; None keeps all keys together."""

    metadata: Path
    keys: Path
    root_keys: Path | None = None

    def keys_of(self, role: str) -> Path:
        return (self.root_keys or self.keys) if role == "root" else self.keys


@dataclass(frozen=True)
class Pen:
    """Signs as the roots it is given say, and writes. Tests pass a `write` that fails."""

    places: Places
    rules: Mapping[str, RoleRule] = field(default_factory=default_rules)
    write: Writer = write_atomic

    def make_keys(self, root: Root, role: str) -> None:
        """Fresh P-256 keys for a role, each a file named by its key id (0600), and the root changed to name them."""
        rule, folder = self.rules[role], self.places.keys_of(role)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(rule.keys):
            key = generate_key()
            signer = CryptoSigner(key)
            save_key(self.key_file(role, signer.public_key.keyid), key)
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = rule.threshold

    def key_file(self, role: str, keyid: str) -> Path:
        return self.places.keys_of(role) / f"{keyid}.pem"

    def signers(self, role: str, roots: Iterable[Root]) -> list[CryptoSigner]:
        """For every key that a root gives the role and that is here. Raises `Corrupt` when those are below a threshold."""
        found: dict[str, CryptoSigner] = {}
        for root in roots:
            keyids = [keyid for keyid in root.roles[role].keyids if self.key_file(role, keyid).exists()]
            if len(keyids) < root.roles[role].threshold:
                raise Corrupt(
                    f"{len(keyids)} of {root.roles[role].threshold} {role} keys are in {self.places.keys_of(role)}"
                )
            for keyid in keyids:
                key = load_key(self.key_file(role, keyid))
                found[keyid] = CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), keyid))
        return list(found.values())

    def write_root(self, root: Root, before: Iterable[Root]) -> bytes:
        return self._write(f"{root.version}.root.json", Metadata(root), self.signers("root", [*before, root]))

    def write_targets(self, targets: Targets, roots: Iterable[Root]) -> bytes:
        return self._write(f"{targets.version}.targets.json", Metadata(targets), self.signers("targets", roots))

    def write_snapshot(self, version: int, targets: tuple[int, bytes], now: float, roots: Iterable[Root]) -> bytes:
        """`targets` is (version, bytes), fixed by length and hash so that parts cannot be mixed."""
        meta = {"targets.json": MetaFile.from_data(*targets, ["sha256"])}
        snapshot = Snapshot(version=version, expires=self.rules["snapshot"].expiry(now), meta=meta)
        return self._write(f"{version}.snapshot.json", Metadata(snapshot), self.signers("snapshot", roots))

    def write_timestamp(self, version: int, snapshot: tuple[int, bytes], now: float, roots: Iterable[Root]) -> bytes:
        meta = MetaFile.from_data(*snapshot, ["sha256"])
        timestamp = Timestamp(version=version, expires=self.rules["timestamp"].expiry(now), snapshot_meta=meta)
        return self._write("timestamp.json", Metadata(timestamp), self.signers("timestamp", roots))

    def _write(self, name: str, metadata: Metadata[S], signers: Iterable[CryptoSigner]) -> bytes:
        for signer in signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes(JSONSerializer(compact=True))
        self.write(self.places.metadata / name, data)
        return data


def parse(kind: type[S], data: bytes) -> S:
    """The signed part, unverified. Raises tuf's `DeserializationError`, `ValueError` for another kind."""
    signed = Metadata[S].from_bytes(data).signed
    if not isinstance(signed, kind):
        raise ValueError(f"expected {kind.__name__} metadata")
    return signed
