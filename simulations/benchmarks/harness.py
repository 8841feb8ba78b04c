"""How a benchmark says what it found: figures on the terminal, `bench-results/NAME.json`, and a plot beside it.

The file is `{"name", "machine", "figures": [{"name", "value", "unit", "peer", "peer_value", "ratio", "aim", "met"}]}`.
`ratio` says how many times better than the peer; where there is no peer, the aim is for the value itself.
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import click
import psutil

from shared.files import write_atomic

RESULTS = Path("bench-results")
_PACKAGES = ("flwr", "grpcio", "numpy", "onnxruntime", "openvino", "torch", "torchao")
Better = Literal["less", "more"]
Plot = Callable[[str, Sequence["Figure"], Path], None]


@dataclass(frozen=True)
class Figure:
    """One number. `ratio` and `met` follow from the rest; use `figure` to make one."""

    name: str
    value: float
    unit: str
    peer: str | None
    peer_value: float | None
    ratio: float | None
    aim: float | None
    met: bool | None


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    peer: tuple[str, float] | None = None,
    aim: float | None = None,
    better: Better = "less",
) -> Figure:
    """`aim` is the least ratio to the peer, or without a peer the most (`better="less"`) or least value.

    Raises `ValueError` for a value that cannot stand in a ratio.
    """
    if peer is None:
        met = None if aim is None else (value <= aim if better == "less" else value >= aim)
        return Figure(name, value, unit, None, None, None, aim, met)
    if value <= 0 or peer[1] <= 0:
        raise ValueError(f"{name}: a ratio needs positive values")
    ratio = peer[1] / value if better == "less" else value / peer[1]
    return Figure(name, value, unit, peer[0], peer[1], ratio, aim, None if aim is None else ratio >= aim)


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def line(one: Figure) -> str:
    """A figure as people read it."""
    text = f"{one.name}: {one.value:.4g} {one.unit}"
    if one.peer is not None:
        text += f"; {one.peer}: {one.peer_value:.4g} {one.unit}; {one.ratio:.3g} times better"
    if one.aim is not None:
        text += f" (aim {one.aim:g}{' times' if one.peer else f' {one.unit}'}, {'met' if one.met else 'NOT met'})"
    return text


def publish(
    name: str,
    figures: Sequence[Figure],
    *,
    folder: Path = RESULTS,
    plot: Plot | None = None,
    told: bool = True,
) -> Path:
    """Print the figures, write them to `folder/NAME.json` and plot them in `folder/NAME.png`. Returns the JSON file.

    Not `told`, they are not printed: a long benchmark writes down what it has while it goes on.
    """
    for one in figures if told else ():
        click.echo(line(one))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"name": name, "machine": machine(), "figures": [asdict(one) for one in figures]}
    write_atomic(path, json.dumps(content, indent=2).encode() + b"\n")
    (plot or bars)(name, figures, folder / f"{name}.png")
    if told:
        click.echo(f"written: {path}, {name}.png")
    return path


def bars(name: str, figures: Sequence[Figure], path: Path) -> None:
    """Bars, one panel a unit; a peer's values below ours, on a logarithmic axis where they are far apart."""
    from matplotlib.figure import Figure as Canvas

    units = list(dict.fromkeys(one.unit for one in figures))
    rows = [_bars_of([one for one in figures if one.unit == unit]) for unit in units]
    canvas = Canvas(figsize=(8, 1.2 + 0.55 * sum(map(len, rows))), layout="constrained")
    panels = canvas.subplots(len(units), 1, squeeze=False, height_ratios=list(map(len, rows)))[:, 0]
    for panel, unit, row in zip(panels, units, rows, strict=True):
        labels, values, colours = zip(*reversed(row), strict=True)
        drawn = panel.barh(range(len(row)), values, color=colours)
        panel.bar_label(drawn, labels=[f"{value:.3g}" for value in values], padding=3)
        panel.set_yticks(range(len(row)), labels)
        panel.set_xlabel(unit)
        positive = [value for value in values if value > 0]
        if positive and max(positive) > 20 * min(positive):
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.set_xlabel(f"{unit}, logarithmic")
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(name)
    canvas.savefig(path, dpi=120)


def _bars_of(figures: Sequence[Figure]) -> list[tuple[str, float, str]]:
    """(label, value, colour); a peer that several figures share stands there once."""
    ours = [(one.name, one.value, "#1f77b4") for one in figures]
    peers = {(one.peer, one.peer_value): None for one in figures}
    return ours + [(name, value, "#9a9a9a") for name, value in peers if name is not None and value is not None]
