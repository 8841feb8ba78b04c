"""`simulate demo`."""

from pathlib import Path

import click


@click.command("demo")
@click.option("--devices", default=8, show_default=True, type=click.IntRange(4, 64), help="How many agents.")
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(3, 1000), help="Federated rounds.")
@click.option("--rate", default=5.0, show_default=True, help="Live requests a second, to each device.")
@click.option("--seed", default=1, show_default=True, help="Of the split and of training.")
@click.option("--report", default="demo-report", show_default=True, type=click.Path(path_type=Path), help="Where to.")
@click.option("--plain", is_flag=True, help="Plain lines, on a terminal too.")
@click.option("--keep", is_flag=True, help="Keep the fleet's homes and logs.")
def demo(devices: int, rounds: int, rate: float, seed: int, report: Path, plain: bool, keep: bool) -> int:
    """Run the whole loop on real handwritten digits: one coordinator and eight agents as real processes.

    \b
    simulate demo
    simulate demo --devices 4 --rounds 4 --report ./small --keep
    """
    from rich.console import Console

    from simulations import report as reports
    from simulations.console import screen, show_closing
    from simulations.demo import Options, run_demo
    from simulations.fleet import Fleet, settle, workplace

    console = Console()
    options = Options(devices=devices, rounds=rounds, rate_hz=rate, seed=seed)
    with workplace(keep=keep) as root:
        if keep:
            console.print(f"homes and logs stay in {root}", soft_wrap=True)
        with screen(console, plain=plain) as shown:
            outcome, answers = settle(run_demo(options, shown, Fleet(root, options.names)))
            shown.step(8, "before and after")
        page = reports.write(report, outcome, answers)
    show_closing(console, outcome)
    seconds = outcome.ended_at - outcome.started_at
    console.print(f"{seconds:.0f} s; the report: {page}", soft_wrap=True)
    return 0 if outcome.held else 1
