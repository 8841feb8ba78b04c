"""How a first bundle is made from a registered network and labelled examples, in the worker process that jobs use too."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from coordinator.builder import Builder, Initial, MakeBundle, Progress
from coordinator.cli.render import print_fields, print_json, share, size
from shared.bundle import Report, require_absent
from shared.cli import given
from shared.learning.examples import load_file
from shared.settings import Scalar


def build_bundle(ask: Initial, out: Path, progress: Progress) -> Report:
    """Train and write a bundle folder. The shape and the classes are the examples', unless the arguments say otherwise.

    Raises `InputError` and its kinds for what was asked, `ChildFailed`, `DeadlineExceeded`; then there is no folder.
    """
    require_absent(out)
    with given():
        whole = replace(ask, arguments={**_schema(Path(ask.data)), **ask.arguments})
        return asyncio.run(_build(Builder(progress=progress), whole, out, progress))


def _schema(data: Path) -> Mapping[str, Scalar]:
    x, y = load_file(data)
    return {"shape": "x".join(map(str, x.shape[1:])), "classes": int(y.max()) + 1}


async def _build(builder: Builder, ask: Initial, out: Path, progress: Progress) -> Report:
    trained = await builder.initial(ask)
    progress("quantizing, exporting and judging the int8 graph")
    notes = f"{ask.factory}, {ask.epochs} epochs on {Path(ask.data).name}"
    bundle = MakeBundle(trained.state.model_json, ask.data, str(out), {"notes": notes}, seed=ask.seed)
    return await builder.bundle(bundle, trained.state.arrays)


def show_report(out: Path, report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(out), "report": asdict(report)})
        return
    print_fields(
        [
            ("bundle", str(out)),
            ("accuracy", f"{share(report.accuracy)} as int8, {share(report.accuracy_float)} as float32"),
            ("judged on", f"{report.examples} held-out examples"),
            ("parameters", str(report.parameters)),
            ("int8 graph", size(report.graph_bytes)),
        ]
    )
