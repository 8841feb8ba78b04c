"""A registry on memory and a manual clock, and a device's side of enrolment."""

from dataclasses import dataclass, field

from coordinator.fleet.device import Device
from coordinator.fleet.registry import EnrolmentRequest, Registry
from coordinator.store.memory_fleet import MemoryFleetStore
from shared.clock import ManualClock
from shared.signing.certificates import Authority, generate_key, make_csr

DAY_S = 86_400.0


@dataclass
class Fleet:
    clock: ManualClock = field(default_factory=ManualClock)
    store: MemoryFleetStore = field(default_factory=MemoryFleetStore)

    def __post_init__(self) -> None:
        self.authority = Authority.create("test fleet", self.clock.now())
        self.registry = Registry(self.store, self.authority, self.clock, certificate_valid_s=90 * DAY_S)

    def token(self, *, require_approval: bool = False, valid_for_s: float = 3600.0) -> str:
        tokens, _ = self.registry.create_tokens(
            count=1, valid_for_s=valid_for_s, labels={"site": "lab"}, require_approval=require_approval, actor="admin"
        )
        return tokens[0].text

    def join(self, name: str, *, require_approval: bool = False) -> Device:
        return self.registry.enrol(request(self.token(require_approval=require_approval), name))


def request(token: str, name: str = "dev1", *, csr: bytes | None = None) -> EnrolmentRequest:
    return EnrolmentRequest(
        token, csr or make_csr(generate_key(), name), name, {"rack": "3"}, '{"name": "generic-x86"}'
    )
