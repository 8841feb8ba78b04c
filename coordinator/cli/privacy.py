"""What `coordinator job plan` reckons from a job file, and how it says it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coordinator.cli.parse import read_text
from coordinator.cli.render import print_fields, print_json
from coordinator.rounds.inputs import read_arrays, with_whole_paths
from coordinator.rounds.plan import JobSpec
from shared.errors import ConfigError
from shared.secagg.private import Mechanism

if TYPE_CHECKING:
    from coordinator.rounds.privacy import Forecast
    from shared.secagg.schema import Arrays


def plan(file: Path, devices: int | None, parameters: int | None) -> "Forecast":
    """Raises `ConfigError`, `Unsupported` for a job that cannot be private as it says, or that so many devices cannot run."""
    from coordinator.rounds.privacy import forecast

    spec = JobSpec.parse(with_whole_paths(read_text(file), file.absolute().parent))
    fewest = spec.selection.min_devices
    if devices is not None and devices < fewest:
        raise ConfigError(
            f"a round of the job has {fewest} devices at least, not {devices}", path="job.selection.min_devices"
        )
    if spec.privacy.enabled and spec.privacy.delta * (devices or fewest) >= 1:
        raise ConfigError(
            f"of {devices} devices one may expect the promise to fail: state a smaller one", path="job.privacy.delta"
        )
    found, start = None, spec.start.arrays_file
    if start and (parameters is None or Path(start).exists()):  # whatever size is asked for, `job submit` reads it
        found = forecast(spec, _arrays_in(start), devices or fewest)
    if parameters is not None:
        model = {"model": np.broadcast_to(np.float32(0), (parameters,))}
        found = forecast(spec, model, devices or fewest)
    if found is None:
        raise ConfigError("the model's size is not in the job file: give --parameters", path="job.start")
    return found


def _arrays_in(start: str) -> "Arrays":
    """Checked as `job submit` checks them. Raises `ConfigError`."""
    from coordinator.rounds.ports import ModelState
    from coordinator.rounds.shelf import starting_arrays
    from shared.flower import record_to_numpy

    return record_to_numpy(starting_arrays(ModelState("", read_arrays(start))))


def show_plan(found: "Forecast", *, as_json: bool) -> None:
    words = verdict(found)
    if as_json:
        print_json({**asdict(found), "noise_to_signal": found.noise_to_signal, "verdict": words})
        return
    distributed = found.mechanism is Mechanism.DISTRIBUTED
    who = (
        "devices add noise before they mask"
        if distributed
        else "weaker: the coordinator sees exact sums, and adds noise"
    )
    certain = f"of {found.contributors} of {found.devices} devices" if distributed else "of the coordinator"
    allowed = f"{found.rounds_allowed} rounds in all, those that fail after vectors were sent included"
    print_fields(
        [
            ("mechanism", f"{found.mechanism}, {who}"),
            ("protects", "whether a device's examples were used, whatever they are; not whether it took part"),
            (
                "epsilon",
                f"{found.epsilon:.4g} for {found.rounds} rounds, {found.epsilon_spare:.4g} with the spare ones",
            ),
            ("delta", f"{found.delta:g}"),
            ("budget allows", allowed),
            ("noise", f"{found.noise_multiplier:.4g} times what a device can change a sum by, surely ({certain})"),
            (
                "an element",
                f"of a round's mean: {found.noise_per_element:.3g}, which is {_relative(found)} of clip_norm",
            ),
            ("a round's mean", f"is off by {found.noise_norm:.3g} in norm; at its longest it is {found.clip_norm:g}"),
            ("model", f"{found.parameters} parameters, {found.bits_on_the_wire} bits each on the wire"),
            ("verdict", words),
        ]
    )


def _relative(found: "Forecast") -> str:
    return f"{found.noise_per_element / found.clip_norm:.3g}"


def verdict(found: "Forecast") -> str:
    """In plain words, for the mean over all rounds of changes as long as they may be: what is left to learn from."""
    times = found.noise_to_signal
    if times >= 1:
        return (
            f"the noise swamps the changes: even over all rounds it is {times:.3g} times as long as they can be together. "
            "Select more devices, train fewer parameters, or state a larger epsilon"
        )
    if times >= 0.25:
        return f"over all rounds the noise is {times:.2g} of the longest change: expect to lose accuracy"
    return f"over all rounds the noise is {times:.2g} of the longest change: the changes stand out"
