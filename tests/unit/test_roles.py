"""Authorisation is one table; it must know every RPC that can be called."""

import importlib
import pkgutil

from coordinator.rpc.roles import ALLOWED, Caller
from protos.fleet import v1


def every_rpc() -> set[str]:
    out = set()
    for module in pkgutil.iter_modules(v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"{v1.__name__}.{module.name}").DESCRIPTOR
            for service in descriptor.services_by_name.values():
                out |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return out


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    assert set(ALLOWED) == every_rpc()


def test_nobody_without_a_certificate_calls_more_than_enrolment() -> None:
    open_to_all = {rpc for rpc, callers in ALLOWED.items() if Caller.ANYONE in callers}
    assert open_to_all == {"/fleet.v1.Enrolment/GetAuthority", "/fleet.v1.Enrolment/Enrol"}


def test_no_device_calls_the_admin_service() -> None:
    assert not [rpc for rpc, callers in ALLOWED.items() if "Admin" in rpc and Caller.DEVICE in callers]
