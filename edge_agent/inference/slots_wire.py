"""edge.v1.Slots messages ↔ the frozen values of `ports`, parsed once, at the edge."""

from pathlib import Path

from edge_agent.inference.batching import BatchPolicy
from edge_agent.inference.ports import (
    Histogram,
    Loaded,
    ModelSpec,
    ModelStatus,
    ServiceStatus,
    ShadowReport,
    SlotStatus,
)
from protos.edge.v1 import slots_pb2 as pb
from shared.errors import Malformed
from shared.ids import Digest


def spec_to_proto(spec: ModelSpec) -> pb.LoadRequest:
    policy = spec.policy
    return pb.LoadRequest(
        model=spec.model,
        version=spec.version,
        digest=spec.digest,
        path=str(spec.path),
        runtime=spec.runtime,
        threads=spec.threads,
        policy=pb.BatchPolicy(
            target_ms=policy.target_ms,
            min_batch=policy.min_batch,
            max_batch=policy.max_batch,
            max_delay_ms=policy.max_delay_ms,
            queue_limit=policy.queue_limit,
        ),
    )


def spec_from_proto(request: pb.LoadRequest) -> ModelSpec:
    """Raises `Malformed`, `ConfigError`."""
    if not request.HasField("policy"):
        raise Malformed("a load request without a batch policy")
    policy = request.policy
    return ModelSpec(
        model=request.model,
        version=request.version,
        digest=Digest(request.digest),  # checked by ModelSpec
        path=Path(request.path),
        runtime=request.runtime,
        threads=request.threads,
        policy=BatchPolicy(
            target_ms=policy.target_ms,
            min_batch=policy.min_batch,
            max_batch=policy.max_batch,
            max_delay_ms=policy.max_delay_ms,
            queue_limit=policy.queue_limit,
        ),
    )


def slot_to_proto(slot: SlotStatus) -> pb.SlotStatus:
    return pb.SlotStatus(
        version=slot.version,
        digest=slot.digest,
        runtime=slot.runtime,
        state=slot.state,
        since=slot.since,
        requests=slot.requests,
        errors=slot.errors,
        reason=slot.reason,
    )


def slot_from_proto(slot: pb.SlotStatus) -> SlotStatus:
    return SlotStatus(
        version=slot.version,
        digest=slot.digest,
        runtime=slot.runtime,
        state=slot.state,
        since=slot.since,
        requests=slot.requests,
        errors=slot.errors,
        reason=slot.reason,
    )


def loaded_to_proto(loaded: Loaded) -> pb.LoadResponse:
    return pb.LoadResponse(slot=slot_to_proto(loaded.slot), load_s=loaded.load_s, warm_up_ms=loaded.warm_up_ms)


def loaded_from_proto(response: pb.LoadResponse) -> Loaded:
    return Loaded(slot_from_proto(response.slot), response.load_s, response.warm_up_ms)


def shadow_to_proto(report: ShadowReport) -> pb.ShadowResponse:
    return pb.ShadowResponse(
        requests=report.requests,
        rows=report.rows,
        agreement=report.agreement,
        max_abs_diff=report.max_abs_diff,
        live_p50_ms=report.live_p50_ms,
        candidate_p50_ms=report.candidate_p50_ms,
        errors=report.errors,
        live_version=report.live_version,
    )


def shadow_from_proto(response: pb.ShadowResponse, version: int) -> ShadowReport:
    return ShadowReport(
        live_version=response.live_version,
        version=version,
        requests=response.requests,
        rows=response.rows,
        agreement=response.agreement,
        max_abs_diff=response.max_abs_diff,
        live_p50_ms=response.live_p50_ms,
        candidate_p50_ms=response.candidate_p50_ms,
        errors=response.errors,
    )


def status_to_proto(status: ServiceStatus) -> pb.StatusResponse:
    models = [_model_to_proto(model) for model in status.models]
    return pb.StatusResponse(models=models, pid=status.pid, started=status.started)


def status_from_proto(response: pb.StatusResponse) -> ServiceStatus:
    models = tuple(_model_from_proto(model) for model in response.models)
    return ServiceStatus(models, response.pid, response.started)


def _model_to_proto(model: ModelStatus) -> pb.ModelStatus:
    return pb.ModelStatus(
        model=model.model,
        live_version=model.live.version if model.live else 0,
        slots=[slot_to_proto(slot) for slot in model.slots],
        requests=model.requests,
        errors=model.errors,
        rejected=model.rejected,
        expired=model.expired,
        queued=model.queued,
        batch_limit=model.batch_limit,
        latency_ms=_histogram_to_proto(model.latency_ms),
        batch_rows=_histogram_to_proto(model.batch_rows),
        since=model.since,
    )


def _model_from_proto(model: pb.ModelStatus) -> ModelStatus:
    slots = tuple(slot_from_proto(slot) for slot in model.slots)
    return ModelStatus(
        model=model.model,
        live=next((slot for slot in slots if slot.version == model.live_version), None),
        slots=slots,
        requests=model.requests,
        errors=model.errors,
        rejected=model.rejected,
        expired=model.expired,
        queued=model.queued,
        batch_limit=model.batch_limit,
        latency_ms=_histogram_from_proto(model.latency_ms),
        batch_rows=_histogram_from_proto(model.batch_rows),
        since=model.since,
    )


def _histogram_to_proto(histogram: Histogram) -> pb.Histogram:
    return pb.Histogram(bounds=histogram.bounds, counts=histogram.counts, sum=histogram.total)


def _histogram_from_proto(histogram: pb.Histogram) -> Histogram:
    return Histogram(tuple(histogram.bounds), tuple(histogram.counts), histogram.sum)
