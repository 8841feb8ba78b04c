"""Releases, receipts and rollouts with sensible values, and a small fleet whose devices hold real keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coordinator.fleet.ports import SessionListener
from coordinator.releases.metadata import Pen, Places, RoleRule, Writer, default_rules
from coordinator.releases.plan import RolloutPlan
from coordinator.releases.release import DeviceRef, Release, Rollout, RolloutDevice
from coordinator.releases.states import DeviceState, RolloutState
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.files import write_atomic
from shared.ids import CommandId, DeviceId, RolloutId, digest_of
from shared.session import Command, Hello, Install, InstallReport, Order, Serving, Withdraw
from shared.signing.certificates import Authority, Role, generate_key, make_csr
from shared.signing.identity import DeviceIdentity, FleetVerifier
from shared.signing.manifest import FILES, FileEntry, Manifest
from shared.signing.receipts import Receipt, sign_receipt

NOW = float(int(SystemClock().now()))  # python-tuf's client reads the machine's clock, so metadata must be of today
ROLLOUT = RolloutId("rol-0123456789")


def a_manifest(release: int = 1, model: str = "digits", salt: str = "") -> Manifest:
    files = {name: FileEntry(digest_of(f"{model} {release} {name} {salt}".encode()), 100 + release) for name in FILES}
    return Manifest(model, release, files, NOW, {"job": "job-1", "round": 6})


def a_release(number: int = 1, model: str = "digits", **changes: Any) -> Release:
    return Release(a_manifest(number, model), **{"report": {"accuracy": 0.97}, **changes})


def a_receipt(release: Release | None = None, device: str = "dev-1", **changes: Any) -> Receipt:
    """One that passes the default gate."""
    release = release or a_release()
    values: dict[str, Any] = {
        "device": device,
        "rollout_id": ROLLOUT,
        "model": release.model,
        "release": release.number,
        "bundle_digest": release.digest,
        "state": "proven",
        "at": NOW,
        "variant_digest": digest_of(b"int8"),
        "runtime": "onnxruntime",
        "answers": 64,
        "accuracy_before": 0.95,
        "accuracy_after": 0.96,
        "max_logit_difference": 0.2,
        "top1_agreement": 0.99,
        "latency_before_ms": 0.4,
        "latency_after_ms": 0.3,
        "size_bytes": 40_000,
    }
    return Receipt(**{**values, **changes})


def a_row(
    device: str = "dev-1", stage: int = 1, state: DeviceState = DeviceState.PENDING, **changes: Any
) -> RolloutDevice:
    return RolloutDevice(DeviceId(device), stage, state, **{"updated_at": NOW, **changes})


def a_rollout(*rows: RolloutDevice, release: Release | None = None, **changes: Any) -> Rollout:
    """In its first stage, unless told otherwise."""
    release = release or a_release()
    values: dict[str, Any] = {
        "id": ROLLOUT,
        "model": release.model,
        "release": release.number,
        "digest": release.digest,
        "state": RolloutState.STAGING,
        "plan": RolloutPlan(),
        "cohort": "",
        "created_at": NOW,
        "stage": 1,
        "stage_started_at": NOW,
        "devices": rows,
    }
    return Rollout(**{**values, **changes})


def a_pen(folder: Path, write: Writer = write_atomic, rules: Mapping[str, RoleRule] | None = None) -> Pen:
    return Pen(Places(folder / "metadata", folder / "keys"), {**default_rules(), **(rules or {})}, write)


class Device:
    """A device with a real key. `inbox` holds the commands that reached it."""

    def __init__(self, authority: Authority, name: str) -> None:
        key = generate_key()
        self.id = DeviceId(f"dev-{name}")
        self.certificate = authority.issue(make_csr(key, name), self.id, "device", now=NOW, valid_for_s=86_400.0)
        self.identity = DeviceIdentity(self.id, key, self.certificate)
        self.ref = DeviceRef(self.id, name, {})
        self.inbox: list[Command] = []
        self.acknowledged: list[str] = []

    def orders(self, kind: type[Install] | type[Withdraw]) -> list[Any]:
        return [command.order for command in self.inbox if isinstance(command.order, kind)]

    def report(self, receipt: Receipt, rollout: RolloutId) -> InstallReport:
        data, signature = sign_receipt(self.identity, replace(receipt, device=self.id, rollout_id=rollout))
        return InstallReport(CommandId("cmd-1"), rollout, data, signature, self.identity.certificate)

    def renew(self, authority: Authority, role: Role = "device") -> None:
        """A fresh key and certificate, as after `Enrolment.Renew`."""
        key = generate_key()
        certificate = authority.issue(make_csr(key, self.id), self.id, role, now=NOW, valid_for_s=86_400.0)
        self.certificate, self.identity = certificate, DeviceIdentity(self.id, key, certificate)


@dataclass
class Fleet:
    """Implements `Sessions` and `DeviceDirectory` in memory: a simulated link, with real certificates."""

    names: Iterable[str] = ("a", "b", "c", "d")
    authority: Authority = field(default_factory=lambda: Authority.create("test", NOW))
    listeners: list[SessionListener] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.devices = {device.id: device for device in (Device(self.authority, name) for name in self.names)}
        self.online = set(self.devices)
        self.hellos: dict[DeviceId, Hello] = {}
        self.away: set[DeviceId] = set()  # quarantined or revoked
        self.verifier = FleetVerifier(self.authority.certificate_der, lambda: NOW)

    def enrol(self, name: str) -> Device:
        device = Device(self.authority, name)
        self.devices[device.id] = device
        return device

    def attach(self, device: DeviceId, *serving: Serving) -> None:
        self.online.add(device)
        hello = self.hellos[device] = Hello("1", "{}", serving=serving)
        for listener in self.listeners:
            listener.attached(device, hello)

    # ---- Sessions

    def connected(self) -> Mapping[DeviceId, Hello]:
        return {device: self.hellos.get(device, Hello("1", "{}")) for device in self.online - self.away}

    def send(self, device: DeviceId, order: Order, *, command_id: str = "") -> None:
        if device not in self.online:
            raise Unavailable(f"device {device} is not connected")
        self.devices[device].inbox.append(Command(CommandId(command_id), order))

    def subscribe(self, listener: SessionListener) -> None:
        self.listeners.append(listener)

    # ---- DeviceDirectory

    def members(self, cohort: str) -> list[DeviceRef]:
        return [device.ref for device in self.devices.values() if device.id not in self.away]


def a_bundle(folder: Path, salt: str = "") -> Path:
    """A folder with the files of a bundle; what is in them matters only to whoever inspects it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text(f'{{"file": "{name}", "salt": "{salt}"}}', encoding="utf-8")
    return folder


def inspect(folder: Path) -> Mapping[str, FileEntry]:
    contents = {name: (folder / name).read_bytes() for name in FILES}
    return {name: FileEntry(digest_of(data), len(data)) for name, data in contents.items()}
