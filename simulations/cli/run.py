"""`simulate run`."""

from pathlib import Path

import click


@click.command("run")
@click.argument("scenario", metavar="SCENARIO")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write report.json into this folder.")
@click.option("--plain", is_flag=True, help="Plain lines, on a terminal too.")
@click.option("--keep", is_flag=True, help="Keep the fleet's homes and logs.")
def run(scenario: str, report: Path | None, plain: bool, keep: bool) -> int:
    """Run a scenario: a fleet, its data, a job, what goes wrong, and what must hold. Exit code 0 only if all of it held.

    SCENARIO is a TOML file (simulations/scenario.py says what it may hold), or the name of one that comes with Shoal:
    bad-network, fifty-devices, kill-while-masks-are-out, people-not-labels.

    \b
    simulate run kill-while-masks-are-out
    simulate run my-scenario.toml --report ./out --keep
    """
    from rich.console import Console

    from simulations import run as runs
    from simulations.console import check_lines, screen
    from simulations.fleet import settle, workplace

    console = Console()
    wanted = runs.read(runs.find(scenario))
    with workplace(keep=keep) as root:
        if keep:
            console.print(f"homes and logs stay in {root}", soft_wrap=True)
        with screen(console, plain=plain) as shown:
            story = settle(runs.run_scenario(wanted, shown, root))
    for line in check_lines(story.checks):
        console.print(line, soft_wrap=True)
    console.print(f"{story.ended_at - story.started_at:.0f} s", highlight=False)
    if report is not None:
        console.print(f"the report: {runs.write_report(report, story)}", soft_wrap=True)
    return 0 if story.held else 1
