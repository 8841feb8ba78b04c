"""How many times less ours costs than Flower's, a row each case and a panel each cost; a line where the aim is."""

from collections.abc import Sequence
from pathlib import Path

from simulations.benchmarks.harness import Figure

PANELS = ("client CPU", "server CPU", "bytes up", "server memory")
_KINDS = {"keys at hand": ">", "keys made": "<"}


def plot(name: str, figures: Sequence[Figure], path: Path) -> None:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator, NullFormatter

    named = {tuple(one.name.split(", ", 1)): one for one in figures}
    cases = [case for what, case in named if what == PANELS[0] and not case.startswith("keys ")]
    known = {name: one for name, one in named.items() if one.ratio is not None}
    canvas = Canvas(figsize=(13, 2 + 0.28 * len(cases)), layout="constrained")
    for panel, what in zip(canvas.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        for row, case in enumerate(reversed(cases)):
            one = known.get((what, case))
            if one is None:
                continue  # nothing is known of Flower's
            hollow = one.peer is not None and "extrapolated" in one.peer
            mark = "x" if one.peer is not None and "gave up" in one.peer else "o"
            panel.plot(one.ratio, row, mark, color="#1f77b4", markerfacecolor="none" if hollow else "#1f77b4")
            for kind, mark in _KINDS.items():
                if (other := known.get((what, f"{kind}, {case}"))) is not None:
                    panel.plot(other.ratio, row, mark, color="#1f77b4", markerfacecolor="none", markersize=5)
            panel.plot(one.aim, row, "|", color="#d62728", markersize=14)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(what)
        panel.set_xlabel("times less than Flower's")
        panel.axvline(1, color="#9a9a9a", linewidth=0.8)
        panel.grid(axis="x", alpha=0.3)
        panel.set_yticks(range(len(cases)), list(reversed(cases)))
        panel.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(
        f"{name}: o mean of a group's rounds (hollow: Flower's extrapolated, x: it gave up), > keys at hand, < made, red: the aim"
    )
    canvas.savefig(path, dpi=120)
