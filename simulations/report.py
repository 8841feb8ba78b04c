"""`demo-report/`: a page that needs nothing else, its pictures as files too, and the same numbers as JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from shared.files import write_atomic
from simulations import plots
from simulations.answers import Answers, save_answers
from simulations.outcome import Outcome, total

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write(folder: Path, outcome: Outcome, answers: Answers) -> Path:
    """Write `index.html`, `report.json`, `answers.safetensors` and the plots; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "accuracy-by-round": plots.accuracy_by_round(outcome),
        "bytes-by-round": plots.bytes_by_round(outcome),
        "latency-over-time": plots.latency_over_time(outcome, answers),
        "accuracy-by-device": plots.accuracy_by_device(outcome),
    }
    for name, svg in pictures.items():
        write_atomic(folder / f"{name}.svg", svg.encode())
    save_answers(folder / "answers.safetensors", answers)
    content = {**asdict(outcome), "held": outcome.held, "total": asdict(total(outcome))}
    write_atomic(folder / "report.json", json.dumps(without_nan(content), indent=2).encode() + b"\n")
    page = folder / "index.html"
    write_atomic(page, _render(outcome, pictures, answers).encode())
    return page


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: without_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [without_nan(item) for item in value]
    return value


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def kilobytes(count: float) -> str:
    return "–" if math.isnan(count) else f"{count / 1e3:,.1f} kB"


def milliseconds(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def times_less(ours: float, theirs: float) -> str:
    return "–" if not ours or math.isnan(ours) or math.isnan(theirs) else f"{theirs / ours:.1f} times less"


def _render(outcome: Outcome, pictures: dict[str, str], answers: Answers) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": percent, "kb": kilobytes, "ms": milliseconds}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        outcome=outcome,
        total=total(outcome),
        times_less=times_less,
        requests=len(answers),
        pictures=pictures,
    )
