"""`coordinator model list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@json_option
@where_option
def command(where: Where, as_json: bool) -> None:
    """List signed releases.

    \b
    coordinator model list --json
    """
    import json

    from coordinator.cli.render import moment, print_json, print_table, share, size, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        models = stub.ListModels(admin_pb2.ListModelsRequest(), timeout=CALL_TIMEOUT_S).models
    if as_json:
        print_json([to_plain(model) for model in models])
        return
    print_table(
        models,
        [
            ("MODEL", lambda m: m.name),
            ("RELEASE", lambda m: str(m.release) + (" (withdrawn)" if m.withdrawn else "")),
            ("ACCURACY", lambda m: share(json.loads(m.report_json or "{}").get("accuracy"))),
            ("INT8", lambda m: size(m.files["model.onnx"])),
            ("MANIFEST", lambda m: m.bundle_digest[:12]),
            ("SIGNED AT", lambda m: moment(m.created_at)),
        ],
        empty="no releases yet: `coordinator model publish` or `job submit` makes one",
    )
