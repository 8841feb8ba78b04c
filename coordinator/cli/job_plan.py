"""What `coordinator job plan` reckons from a job file, and how it says it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coordinator.cli.parse import read_text
from coordinator.cli.render import print_fields, print_json, size
from coordinator.rounds.inputs import read_arrays, with_whole_paths
from coordinator.rounds.plan import JobSpec
from shared.errors import ConfigError
from shared.secagg.private import Mechanism

if TYPE_CHECKING:
    from coordinator.rounds.cost import Cost
    from coordinator.rounds.privacy import Forecast
    from shared.secagg.schema import Arrays


@dataclass(frozen=True)
class Plan:
    """`privacy` None: the job is not private."""

    cost: "Cost"
    privacy: "Forecast | None"


def plan(file: Path, devices: int | None, parameters: int | None) -> Plan:
    """Raises `ConfigError`, `Unsupported` for a job that is not secure or cannot be private as it says, or for too few devices."""
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
        found = _plan(spec, _arrays_in(start), devices or fewest)
    if parameters is not None:
        found = _plan(spec, {"model": np.broadcast_to(np.float32(0), (parameters,))}, devices or fewest)
    if found is None:
        raise ConfigError("the model's size is not in the job file: give --parameters", path="job.start")
    return found


def _plan(spec: JobSpec, arrays: "Arrays", devices: int) -> Plan:
    from coordinator.rounds.cost import cost
    from coordinator.rounds.privacy import forecast

    return Plan(cost(spec, arrays, devices), forecast(spec, arrays, devices) if spec.privacy.enabled else None)


def _arrays_in(start: str) -> "Arrays":
    """Checked as `job submit` checks them. Raises `ConfigError`."""
    from coordinator.rounds.ports import ModelState
    from coordinator.rounds.shelf import starting_arrays
    from shared.flower import record_to_numpy

    return record_to_numpy(starting_arrays(ModelState("", read_arrays(start))))


def show_plan(found: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json({**_cost_values(found.cost), **(_privacy_values(found.privacy) if found.privacy else {})})
        return
    print_fields([*_cost_fields(found.cost), *(_privacy_fields(found.privacy) if found.privacy else [])])


def _cost_values(found: "Cost") -> dict[str, object]:
    more = {"bytes_a_parameter": found.bytes_a_parameter, "trips_saved": found.trips_saved}
    return {**asdict(found), **more}


def _privacy_values(found: "Forecast") -> dict[str, object]:
    return {**asdict(found), "noise_to_signal": found.noise_to_signal, "verdict": verdict(found)}


def _cost_fields(found: "Cost") -> list[tuple[str, str]]:
    sum_of, noise = f"⌈log2 {found.group}⌉", found.bits_on_the_wire - found.bits - found.bits_of_the_sum
    formula = f"b + {sum_of}{' + noise' if noise else ''} = {found.bits} + {found.bits_of_the_sum}{f' + {noise}' if noise else ''}"
    sent = f", of which a share of {found.share_sent:.3g} is sent" if found.share_sent < 1 else ""
    near = "all others" if found.neighbours == found.group - 1 else f"{found.neighbours} others"
    saved = f"{found.trips_saved} are saved in {found.key_rounds} of them" if found.trips_saved else "none is saved"
    first = f", {size(found.first_vector_bytes)} in the first round" * (found.first_vector_bytes != found.vector_bytes)
    return [
        ("devices", f"{found.devices}{f', in groups of up to {found.group}' if found.group < found.devices else ''}"),
        ("model", f"{found.parameters} parameters, {found.bits_on_the_wire} bits each on the wire ({formula}){sent}"),
        ("masked vector", f"{size(found.vector_bytes)}: {found.bytes_a_parameter:.4g} bytes a parameter{first}"),
        ("keys", f"{size(found.keys_bytes)} more from a device where they are made, for {found.key_rounds} exchanges"),
        ("masks", f"each device shares one with {near}, of whom {found.threshold} can stand in for it"),
        (
            "trips",
            f"{found.trips} an exchange (to train, to measure), {found.trips_with_keys} where keys are made: {saved}",
        ),
    ]


def _privacy_fields(found: "Forecast") -> list[tuple[str, str]]:
    distributed = found.mechanism is Mechanism.DISTRIBUTED
    who = (
        "devices add noise before they mask"
        if distributed
        else "weaker: the coordinator sees exact sums, and adds noise"
    )
    certain = f"of {found.contributors} of {found.devices} devices" if distributed else "of the coordinator"
    allowed = f"{found.rounds_allowed} rounds in all, those that fail after vectors were sent included"
    return [
        ("mechanism", f"{found.mechanism}, {who}"),
        ("protects", "whether a device's examples were used, whatever they are; not whether it took part"),
        ("epsilon", f"{found.epsilon:.4g} for {found.rounds} rounds, {found.epsilon_spare:.4g} with the spare ones"),
        ("delta", f"{found.delta:g}"),
        ("budget allows", allowed),
        ("noise", f"{found.noise_multiplier:.4g} times what a device can change a sum by, surely ({certain})"),
        (
            "an element",
            f"of a round's mean: {found.noise_per_element:.3g}, which is {_relative(found)} of clip_norm",
        ),
        ("a round's mean", f"is off by {found.noise_norm:.3g} in norm; at its longest it is {found.clip_norm:g}"),
        ("verdict", verdict(found)),
    ]


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
