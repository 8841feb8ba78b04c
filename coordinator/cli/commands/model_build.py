"""`coordinator model build`."""

from pathlib import Path

import click

from coordinator.cli.client import json_option


@click.command("build")
@click.option(
    "--factory",
    required=True,
    help="A registered network, such as cnn-small or resnet8, or one from an installed package.",
)
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the network, such as width=32 or weights=imagenet.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Labelled examples: arrays x and y in an .npz or .safetensors file.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle's folder, which is made.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(0, 10_000), help="Times through the data.")
@click.option(
    "--lr", default=0.05, show_default=True, type=click.FloatRange(0, 10, min_open=True), help="Learning rate."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="The same again gives the same model."
)
@json_option
def command(arguments: tuple[str, ...], data: Path, out: Path, as_json: bool, **settings: object) -> None:
    """Train a first model and write it as a bundle. No coordinator is needed. A fifth of the examples is held out to judge it.

    The shape of an example and the number of classes are read from the data, unless --arg gives shape=1x28x28 or classes=cat,dog.

    \b
    coordinator model build --factory cnn-small --data digits.npz --out ./bundle
    coordinator model build --factory cnn-small --arg width=32 \\
        --data digits.npz --out ./wider --epochs 20
    coordinator model publish ./bundle --name digits
    """
    from coordinator.builder import Initial
    from coordinator.cli.build import build_bundle, show_report
    from coordinator.cli.parse import parse_arguments
    from coordinator.cli.render import progress
    from shared.settings import from_mapping

    asked = {"arguments": parse_arguments(arguments), "data": str(data), **settings}
    with progress() as say:
        report = build_bundle(from_mapping(Initial, asked, where="model build"), out, say)
    show_report(out, report, as_json=as_json)
    click.echo(f"next: coordinator model publish {out} --name NAME", err=True)
