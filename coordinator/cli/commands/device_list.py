"""`coordinator device list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@click.option("--cohort", default="", help="Only these, e.g. 'site=lab, share=25%'.")
@json_option
@where_option
def command(where: Where, cohort: str, as_json: bool) -> None:
    """List devices, what they serve and whether they are connected. A release that is not proven has a question mark.

    \b
    coordinator device list
    coordinator device list --cohort 'profile=jetson-nano' --json
    """
    from coordinator.cli.device import serves
    from coordinator.cli.render import labels, moment, print_json, print_table, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        devices = stub.ListDevices(admin_pb2.ListDevicesRequest(cohort=cohort), timeout=CALL_TIMEOUT_S).devices
    if as_json:
        shown = [to_plain(device) for device in devices]
        for device in shown:
            del device["client_apps"]  # `device show` has them
        print_json(shown)
        return
    print_table(
        devices,
        [
            ("NAME", lambda d: d.name),
            ("STATE", lambda d: d.state),
            ("SERVES", serves),
            ("LAST SEEN", lambda d: "online" if d.connected else moment(d.last_seen_at)),
            ("ID", lambda d: d.id),
            ("PROFILE", lambda d: d.profile or "-"),
            ("LABELS", lambda d: labels(d.labels) or "-"),
        ],
        empty="no devices yet: make a join token with `coordinator token create`",
    )
