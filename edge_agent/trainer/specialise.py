"""Makes a release fit this device: requantize for its profile, check the integers against the fake-quantized network, measure
every runtime, take the fastest that answers right.

Without `requantize` nothing here loads torch: the bundle's own graph is judged against the probe in its report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.judge import Evidence
from edge_agent.judge import judge as refusal_of
from edge_agent.runtimes import Artifact, Runtime, Session, available, file_name, measure
from edge_agent.storage import Split
from edge_agent.trainer.variant import Measured, Variant, write_variant
from shared.bundle import Bundle
from shared.errors import Malformed, ShoalError, Unsupported
from shared.files import write_atomic
from shared.ids import digest_of
from shared.learning.graph import INPUT, OUTPUT, check_graph
from shared.learning.measure import Agreement, Evaluation, agreement, judge, probe_candidates
from shared.learning.profile import Profile
from shared.session import Gate

Floats = NDArray[np.float32]
_REPEATS_ONE, _REPEATS_BATCH = 40, 10
_CHECKED = 256  # held-out examples that int8 and fake-quantized answers are compared on
_CALIBRATION = 512
_CLEARLY_FASTER = 0.95  # a runtime further down the profile's list must be this much quicker


@dataclass(frozen=True)
class _Candidate:
    """A model as the artifacts that were made of it, questions with known answers, and where it comes from."""

    origin: Literal["local", "shipped"]
    artifacts: Mapping[Artifact, bytes]
    questions: Floats
    reference: Floats
    weight_bits: int


@dataclass(frozen=True)
class _Found:
    runtime: str
    artifact: Artifact
    fit: Agreement | None
    evaluation: Evaluation | None
    measured: tuple[Measured, ...]


def specialise(
    bundle: Bundle,
    data: Split | None,
    profile: Profile,
    out_dir: Path,
    *,
    gate: Gate,
    recovery_batches: int = 20,
    seed: int = 0,
    runtimes: Mapping[str, Runtime] | None = None,
) -> Variant:
    """Writes `out_dir` (variant.json and the chosen runtime's artifact), whole or not at all. `data`: None for a device without
    examples, which takes the release's own graph.

    When the local graph does not pass the gate, or cannot be made, the shipped one is taken and the reason recorded. Raises
    `Malformed` for a bundle that is no good, `Unsupported` when no runtime here answers as the bundle says or the graph is over
    the profile's size budget, `Conflict` if `out_dir` exists, `StorageFull`.
    """
    _check_budget(bundle.graph, profile)
    usable = _usable(profile, available() if runtimes is None else runtimes)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    bench = _Bench(usable, profile, data or _patterns(bundle), gate, out_dir.with_name(f".{out_dir.name}"))
    reason = ""
    if gate.requantize and data is not None:
        try:
            local = _requantized(bundle, data, profile, recovery_batches, seed)
            found = bench.judge(local)
            bench.compare(found, _shipped(bundle))
            return _written(out_dir, local, found, profile, batches=recovery_batches)
        except ShoalError as error:
            reason = error.message
    shipped = _shipped(bundle)
    return _written(out_dir, shipped, bench.judge(shipped), profile, fallback=reason)


def _patterns(bundle: Bundle) -> Split:
    """What the runtimes are timed on where there are no examples."""
    x = probe_candidates(bundle.spec.schema)
    return Split(x, np.zeros(len(x), np.int64), x[:0], np.zeros(0, np.int64))


def _check_budget(graph: bytes, profile: Profile) -> None:
    if len(graph) > profile.size_budget_bytes:
        raise Unsupported(
            f"the graph has {len(graph)} bytes, profile {profile.name} allows {profile.size_budget_bytes}: "
            "prune the model further, or raise size_budget_bytes"
        )


def _usable(profile: Profile, runtimes: Mapping[str, Runtime]) -> dict[str, Runtime]:
    chosen = {name: runtimes[name] for name in profile.runtimes if name in runtimes}
    if not chosen:
        raise Unsupported(
            f"none of profile {profile.name}'s runtimes ({', '.join(profile.runtimes)}) is installed: "
            f"name one of {', '.join(runtimes) or 'none'}"
        )
    return chosen


def _shipped(bundle: Bundle) -> _Candidate:
    """Judged on the report's probe: questions that this device makes again from a fixed seed."""
    probe = bundle.report.probe
    classes = len(bundle.spec.schema.classes)
    if probe.logits and len(probe.logits[0]) != classes:
        raise Malformed(f"the report's probe answers {len(probe.logits[0])} classes, the model has {classes}")
    questions = probe_candidates(bundle.spec.schema)[list(probe.indices)]
    reference = np.array(probe.logits, dtype=np.float32).reshape(len(probe.logits), classes)
    bits = bundle.report.weight_bits or bundle.spec.recipe.weight_bits
    return _Candidate("shipped", {"onnx": bundle.graph}, questions, reference, bits)


def _requantized(bundle: Bundle, data: Split, profile: Profile, batches: int, seed: int) -> _Candidate:
    from shared.learning.compress import Recovery, quantize  # seconds of imports, only here
    from shared.learning.spec import Recipe

    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(data.train_y))[:_CALIBRATION]
    questions = (data.held_x if len(data.held_y) else data.train_x)[:_CHECKED]
    made = quantize(
        bundle.spec,
        bundle.state,
        data.train_x[chosen],
        questions,
        recipe=Recipe(profile.weight_bits),
        recovery=Recovery(batches),
        rng=rng,
    )
    check_graph(made.onnx, bundle.spec.schema, max_bytes=profile.size_budget_bytes)
    return _Candidate("local", {"onnx": made.onnx}, questions, made.reference, profile.weight_bits)


class _Bench:
    """Runs candidates on this device's runtimes. The scratch files (`scratch` with an ending) are gone after each use."""

    def __init__(
        self, runtimes: Mapping[str, Runtime], profile: Profile, data: Split, gate: Gate, scratch: Path
    ) -> None:
        self._runtimes = runtimes
        self._profile = profile
        self._data = data
        self._gate = gate
        self._scratch = scratch

    def judge(self, candidate: _Candidate) -> _Found:
        """The fastest runtime that passes the gate. Raises `Unsupported` if there is none."""
        try:
            for artifact, model in candidate.artifacts.items():
                write_atomic(self._staged(artifact), model)
            tried = [self._try(runtime, candidate) for runtime in self._runtimes.values()]
        finally:
            for artifact in candidate.artifacts:
                self._staged(artifact).unlink(missing_ok=True)
        measured = tuple(one.measured[0] for one in tried)
        good = [one for one in tried if not one.measured[0].refused]
        if not good:
            why = "; ".join(f"{one.runtime}: {one.refused}" for one in measured)
            raise Unsupported(f"no runtime on this device answers as the {candidate.origin} graph should", detail=why)
        best = good[0]
        for other in good[1:]:
            if other.measured[0].one_ms < best.measured[0].one_ms * _CLEARLY_FASTER:
                best = other
        return replace(best, measured=measured)

    def compare(self, found: _Found, shipped: _Candidate) -> None:
        """Raises `Unsupported` when the shipped graph is better on held-out examples by more than the budget."""
        if found.evaluation is None:
            return
        try:
            other = self.judge(shipped).evaluation
        except Unsupported:
            return
        if other is None:
            return
        seen = Evidence(other.accuracy, found.evaluation.accuracy, held_out=len(self._data.held_y))
        if reason := refusal_of(self._gate, seen):
            raise Unsupported(f"against the shipped graph the local one's {reason}")

    def _staged(self, artifact: Artifact) -> Path:
        return self._scratch.with_name(f"{self._scratch.name}.{file_name(artifact)}")

    def _try(self, runtime: Runtime, candidate: _Candidate) -> _Found:
        try:
            if runtime.artifact not in candidate.artifacts:
                raise Unsupported(
                    f"it loads {file_name(runtime.artifact)}, and none was made of the {candidate.origin} graph"
                )
            session = runtime.load(self._staged(runtime.artifact), threads=self._profile.threads)
            try:
                return self._measure(runtime, session, candidate)
            finally:
                session.close()
        except ShoalError as error:
            return _Found(runtime.name, runtime.artifact, None, None, (Measured(runtime.name, refused=error.message),))

    def _measure(self, runtime: Runtime, session: Session, candidate: _Candidate) -> _Found:
        fit = None
        if len(candidate.questions):
            fit = agreement(candidate.reference, self._answers(session, candidate.questions))
        evaluation = None
        if len(self._data.held_y):
            evaluation = judge(self._answers(session, self._data.held_x), self._data.held_y)
        example = self._data.train_x[:1]
        one = measure(session, {INPUT: example}, _REPEATS_ONE)
        batch = np.repeat(example, self._profile.max_batch, axis=0)
        many = measure(session, {INPUT: batch}, _REPEATS_BATCH)
        measured = Measured(
            runtime=runtime.name,
            one_ms=one.p50_ms,
            one_p99_ms=one.p99_ms,
            batch_ms=many.p50_ms,
            max_logit_difference=None if fit is None else min(fit.max_logit_difference, 1e9),
            top1_agreement=None if fit is None else fit.top1_agreement,
            refused=self._refusal(fit),
        )
        return _Found(runtime.name, runtime.artifact, fit, evaluation, (measured,))

    def _answers(self, session: Session, x: Floats) -> Floats:
        """In batches that the profile allows."""
        size = self._profile.max_batch
        parts = [session.run({INPUT: x[begin : begin + size]})[OUTPUT] for begin in range(0, len(x), size)]
        return np.concatenate(parts)

    def _refusal(self, fit: Agreement | None) -> str:
        if fit is None:
            return ""
        seen = Evidence(max_logit_difference=fit.max_logit_difference, top1_agreement=fit.top1_agreement)
        return refusal_of(self._gate, seen)


def _written(
    out_dir: Path, candidate: _Candidate, found: _Found, profile: Profile, *, batches: int = 0, fallback: str = ""
) -> Variant:
    model = candidate.artifacts[found.artifact]
    chosen = next(one for one in found.measured if one.runtime == found.runtime)
    variant = Variant(
        runtime=found.runtime,
        origin=candidate.origin,
        digest=digest_of(model),
        size_bytes=len(model),
        profile=profile.name,
        weight_bits=candidate.weight_bits,
        batch=profile.max_batch,
        measured=found.measured,
        accuracy=None if found.evaluation is None else found.evaluation.accuracy,
        max_logit_difference=chosen.max_logit_difference,
        top1_agreement=chosen.top1_agreement,
        recovery_batches=batches,
        within_latency_budget=chosen.one_ms <= profile.latency_budget_ms,
        artifact=found.artifact,
        fallback=fallback,
    )
    return write_variant(out_dir, variant, model)
