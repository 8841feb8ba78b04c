"""`coordinator rollout start`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, MAX_NUMBER, Where, admin, json_option, where_option


@click.command("start")
@click.argument("model")
@click.option("--release", type=click.IntRange(1, MAX_NUMBER), help="Its number; the newest if not given.")
@click.option("--plan", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Stages and gates (TOML).")
@click.option("--cohort", default="", help="Only these devices; all if not given.")
@json_option
@where_option
def command(where: Where, model: str, release: int | None, plan: Path | None, cohort: str, as_json: bool) -> None:
    """Bring a release to devices in stages. One canary, a quarter, then all, unless --plan says otherwise.

    \b
    coordinator rollout start digits
    coordinator rollout start digits --release 3 --cohort site=lab
    coordinator rollout start digits --plan careful.toml

    \b
    careful.toml:
      stages = [1, 5, 0.5, 1.0]   # devices, then shares of the cohort
      soak_s = 3600.0             # seconds between two stages
      max_failures = 0            # of a stage; more refuse the release
      [gate]
      accuracy_budget = 0.01      # so much less is no reason to refuse
    """
    from coordinator.cli.parse import read_text
    from coordinator.cli.rollout import show_rollout
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.StartRolloutRequest(
        model=model, release=release or 0, cohort=cohort, plan_toml=read_text(plan) if plan else ""
    )
    with admin(where) as stub:
        answer = stub.StartRollout(request, timeout=CALL_TIMEOUT_S)
    show_rollout(answer, as_json=as_json)
