"""The report's pictures, as SVG text: no display, no fonts to install, sharp at any size."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from simulations.answers import Answers
from simulations.answers import Outcome as Ending
from simulations.outcome import Mark, Outcome

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2563a8", "#d9822b", "#3a8f57", "#c0392b", "#8a8f98"
_STYLES = {"kill": (_RED, "--"), "prune": (_ORANGE, "-."), "swap": (_GREEN, "-"), "refused": (_RED, ":")}
_WORDS = {"kill": "agent killed", "prune": "channels pruned", "swap": "model swapped", "refused": "release refused"}
_BIN_S = 1.0
_UPRIGHT = 10  # so many devices' names stand side by side


def _canvas(height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure) -> None:
    figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=8)


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "shoal"}):
        figure.savefig(file, format="svg", dpi=160, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def accuracy_by_round(outcome: Outcome) -> str:
    """The global model's accuracy after each committed round; what happened in a round is named."""
    figure, axes = _canvas()
    rounds = outcome.committed
    numbers = [one.round for one in rounds]
    axes.plot(numbers, [100 * one.accuracy for one in rounds], color=_BLUE, marker="o", label="global model")
    before = [one.before.accuracy for one in outcome.devices]
    if before:
        axes.axhline(
            100 * float(np.mean(before)), color=_GREY, linestyle="--", label="release before, on live requests"
        )
    for one, earlier in zip(rounds[1:], rounds, strict=False):
        if one.parameters < earlier.parameters:
            note = f"channels pruned:\n{earlier.parameters:,} to {one.parameters:,} parameters"
            _note(axes, one.round - 0.5, 0.32, note, _ORANGE)
    for one in rounds:
        if one.recovered:
            _note(axes, one.round, 0.12, f"{one.recovered} killed,\nmasks taken out", _RED)
    _by_round(axes, "accuracy, %")
    _legend(figure)
    return _svg(figure)


def _by_round(axes: Axes, measured: str) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(measured)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _note(axes: Axes, x: float, height: float, text: str, colour: str) -> None:
    axes.axvline(x, color=colour, linewidth=1, linestyle=":")
    axes.annotate(
        text,
        (x, height),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color=colour,
        fontsize=8,
    )


def bytes_by_round(outcome: Outcome) -> str:
    """What a device sends and fetches in a round, beside what float32 FedAvg would."""
    figure, axes = _canvas()
    rounds = outcome.committed
    numbers = np.array([one.round for one in rounds], float)
    axes.bar(numbers - 0.2, [one.bytes_up / 1e3 for one in rounds], 0.38, color=_BLUE, label="up")
    axes.bar(numbers + 0.2, [one.bytes_down / 1e3 for one in rounds], 0.38, color=_GREEN, label="down")
    for place, one in enumerate(rounds):
        label = "FedAvg in float32, each way" if place == 0 else ""
        left, right = one.round - 0.5, one.round + 0.5
        axes.hlines(one.fp32_bytes / 1e3, left, right, color=_GREY, linestyle="--", label=label)
    _by_round(axes, "kB a device and round")
    _legend(figure)
    return _svg(figure)


def latency_over_time(outcome: Outcome, answers: Answers) -> str:
    """Every answered request as a dot, the median and p99 of each second, and the moments that could have hurt."""
    figure, axes = _canvas(3.8)
    good = answers.outcome == Ending.ANSWERED
    times = answers.sent[good] - outcome.started_at
    milliseconds = (answers.ended[good] - answers.sent[good]) * 1e3
    axes.scatter(times, milliseconds, s=3, color=_BLUE, alpha=0.25, linewidths=0, rasterized=True)
    axes.plot([], [], ".", color=_BLUE, alpha=0.5, label="a request")  # in the legend, where a dot as above is not seen
    for share, colour, label in ((50, _BLUE, "median"), (99, _ORANGE, "p99")):
        middles, values = _binned(times, milliseconds, share)
        axes.plot(middles, values, color=colour, linewidth=1.3, label=f"{label}, each second")
    failed = answers.sent[answers.outcome == Ending.FAILED] - outcome.started_at
    if len(failed):
        low = np.full(len(failed), 0.02)  # of the axis' height
        axes.plot(failed, low, "x", color=_RED, transform=axes.get_xaxis_transform(), label="failed request")
    _moments(axes, outcome.marks, outcome.started_at)
    if len(times):
        _log_scale(axes)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("latency, ms")
    _legend(figure)
    return _svg(figure)


def _log_scale(axes: Axes) -> None:
    """1, 2, 5, 10 …, as numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _binned(times: np.ndarray, values: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    bins = (times // _BIN_S).astype(int)
    present = np.unique(bins)
    return (present + 0.5) * _BIN_S, np.array([np.percentile(values[bins == one], share) for one in present])


def _moments(axes: Axes, marks: Sequence[Mark], start: float) -> None:
    named: set[str] = set()
    for mark in marks:
        if mark.kind in _STYLES:
            colour, line = _STYLES[mark.kind]
            label = None if mark.kind in named else _WORDS[mark.kind]
            named.add(mark.kind)
            axes.axvline(mark.at - start, color=colour, linestyle=line, linewidth=0.9, alpha=0.8, label=label)


def accuracy_by_device(outcome: Outcome) -> str:
    """Before and after, on answers to live requests."""
    figure, axes = _canvas()
    places = np.arange(len(outcome.devices), dtype=float)
    axes.bar(places - 0.2, [100 * one.before.accuracy for one in outcome.devices], 0.38, color=_GREY, label="before")
    axes.bar(places + 0.2, [100 * one.after.accuracy for one in outcome.devices], 0.38, color=_GREEN, label="after")
    names = [one.name for one in outcome.devices]
    axes.set_xticks(places, names)
    if len(names) > _UPRIGHT:
        axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set_ylabel("accuracy on live requests, %")
    axes.set_ylim(0, 101)
    _legend(figure)
    return _svg(figure)
