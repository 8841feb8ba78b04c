"""What the device commands share: one request, one answer, printed whole."""

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin
from coordinator.cli.render import NOTHING, labels, moment, print_fields, print_json, to_plain
from protos.fleet.v1 import admin_pb2


def serves(device: admin_pb2.Device) -> str:
    """Its releases, those that it has not proven with a question mark."""
    return " ".join(f"{item.model}:{item.release}{'' if item.proven else '?'}" for item in device.models) or NOTHING


def call_and_show(where: Where, method: str, device: str, *, reason: str = "", as_json: bool = False) -> None:
    """Call `Admin.METHOD` for one device and print the device as it is then."""
    with admin(where) as stub:
        answer = getattr(stub, method)(admin_pb2.DeviceRequest(device=device, reason=reason), timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    print_fields(
        [
            ("name", answer.name),
            ("id", answer.id),
            ("state", answer.state + (f" ({answer.reason})" if answer.reason else "")),
            ("connected", "yes" if answer.connected else "no"),
            ("serves", serves(answer)),
            ("labels", labels(answer.labels) or "-"),
            ("profile", answer.profile or "-"),
            ("client apps", " ".join(answer.client_apps) or "-"),
            ("agent", answer.agent_version or "-"),
            ("enrolled", moment(answer.enrolled_at)),
            ("last seen", moment(answer.last_seen_at)),
            ("certificate until", moment(answer.certificate_expires_at)),
        ]
    )
