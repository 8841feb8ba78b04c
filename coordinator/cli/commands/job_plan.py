"""`coordinator job plan`."""

from pathlib import Path

import click

from coordinator.cli.client import json_option


@click.command("plan")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--devices", type=click.IntRange(3), help="In each round; min_devices if not given.")
@click.option("--parameters", type=click.IntRange(1), help="Of the model; those of start.arrays_file if not given.")
@json_option
def command(file: Path, devices: int | None, parameters: int | None, as_json: bool) -> None:
    """Show what a job sends and what its privacy costs.

    Nothing is started or spent. Masked vectors and keys are those of a round with so many devices.

    Of a private job EPSILON bounds what all rounds together say of any one device to whoever sees their sums: nothing that they
    could see is more than e^EPSILON times as likely with the device's examples as without, but with the chance DELTA. Below 1 is
    strong, above 10 says little.

    \b
    coordinator job plan job.toml
    coordinator job plan job.toml --devices 500 --parameters 30000 --json
    """
    from coordinator.cli.job_plan import plan, show_plan

    show_plan(plan(file, devices, parameters), as_json=as_json)
