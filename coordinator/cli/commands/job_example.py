"""`coordinator job example`."""

import click


@click.command("example")
@click.option("--model", default="digits", show_default=True, help="The model that the job improves.")
def command(model: str) -> None:
    """Print a job file that explains every setting. Change it, then submit it.

    \b
    coordinator job example --model digits > job.toml
    coordinator job submit job.toml
    """
    from coordinator.cli.job import example

    click.echo(example(model), nl=False)
