"""How one release is printed."""

import json
from typing import Any

from coordinator.cli.render import moment, print_fields, print_json, size, to_plain


def show_model(model: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(to_plain(model))
        return
    print_fields(
        [
            ("model", model.name),
            ("release", str(model.release) + (" (withdrawn)" if model.withdrawn else "")),
            ("manifest", model.bundle_digest),
            ("signed at", moment(model.created_at)),
            *((f"file {name}", size(model.files[name])) for name in sorted(model.files)),
            *((f"lineage {key}", str(value)) for key, value in sorted(json.loads(model.lineage_json or "{}").items())),
            *((f"report {key}", str(value)) for key, value in sorted(json.loads(model.report_json or "{}").items())),
        ]
    )
