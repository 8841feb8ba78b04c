"""How a first bundle is made from a registered network and labelled examples, in the worker process that jobs use too."""

import asyncio
import contextlib
import secrets
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from coordinator.builder import Builder, Initial, MakeBundle, Progress
from coordinator.cli.render import print_fields, print_json, share, size
from shared.bundle import Report, require_absent
from shared.cli import given
from shared.errors import ConfigError, InputError
from shared.learning.examples import load_file
from shared.settings import Scalar


def build_bundle(ask: Initial, out: Path, progress: Progress) -> Report:
    """Train and write a bundle folder. The shape and the classes are the examples', unless the arguments say otherwise.

    Raises `InputError` and its kinds for what was asked, `ChildFailed`, `DeadlineExceeded`; then there is no folder.
    """
    require_absent(out)
    with given():
        whole = replace(ask, arguments={**_schema(Path(ask.data), ask.arguments), **ask.arguments})
        with _place_for(out):
            return asyncio.run(_build(Builder(progress=progress), whole, out, progress))


def _schema(data: Path, asked: Container[str]) -> Mapping[str, Scalar]:
    """Raises `InputError` for labels with a gap: one wrong label of a hundred would silently make that many classes."""
    x, y = load_file(data)
    found: dict[str, Scalar] = {"shape": "x".join(map(str, x.shape[1:]))}
    if "classes" in asked:
        return found
    labels = set(np.unique(y).tolist())
    missing = sorted(set(range(max(labels))) - labels)
    if missing:
        raise InputError(
            f"{data.name} has label {max(labels)}, but no example of {len(missing)} labels below it, such as {missing[0]}:"
            f" correct the labels, or say --arg classes={max(labels) + 1}"
        )
    return {**found, "classes": len(labels)}


@contextlib.contextmanager
def _place_for(out: Path) -> Iterator[None]:
    """Tries before the training whether `out` can be made. Folders made for that go again when the build fails.

    Raises `ConfigError`.
    """
    missing = [folder for folder in out.absolute().parents if not folder.exists()]  # the nearest first
    try:
        try:
            probe = out.with_name(f".{out.name}.{secrets.token_hex(6)}.tmp")
            probe.mkdir(parents=True)
            probe.rmdir()
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from error
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


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
