"""How one release is printed."""

import json
from typing import Any

from coordinator.cli.render import moment, print_fields, print_json, size, to_plain

_ONLY_JSON = ("lineage", "probe")  # of a report: the lineage is shown already, the probe is for machines


def show_model(model: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(to_plain(model))
        return
    report = json.loads(model.report_json or "{}")
    lineage = {**(report.get("lineage") or {}), **json.loads(model.lineage_json or "{}")}
    print_fields(
        [
            ("model", model.name),
            ("release", str(model.release) + (" (withdrawn)" if model.withdrawn else "")),
            ("manifest", model.bundle_digest),
            ("signed at", moment(model.created_at)),
            *((f"file {name}", size(model.files[name])) for name in sorted(model.files)),
            *((f"lineage {key}", str(value)) for key, value in sorted(lineage.items())),
            *((f"report {key}", _figure(value)) for key, value in _figures(report)),
        ]
    )


def _figures(report: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((key, value) for key, value in report.items() if key not in _ONLY_JSON)


def _figure(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
