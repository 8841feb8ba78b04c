"""The Open Inference Protocol v2 servicer: what applications on the device talk to."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version

from edge_agent.inference.codec import NAMES, decode, encode, wanted_outputs
from edge_agent.inference.engine import Engine
from edge_agent.inference.generation import Generation
from edge_agent.inference.rpc import Context, abort
from edge_agent.inference.stats import Duration
from edge_agent.runtimes import TensorSpec
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from shared.errors import ShoalError

_STREAM_WINDOW = 64  # requests of one stream that may be on their way at once


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Method names are the protocol's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._engine.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            self._engine.model(request.name).generation(request.version)
        except ShoalError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        try:
            release = version("shoal")
        except PackageNotFoundError:  # run from a checkout that is not installed
            release = "unknown"
        return pb.ServerMetadataResponse(name="shoal", version=release, extensions=["statistics", "model_repository"])

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        try:
            model = self._engine.model(request.name)
            generation = model.generation(request.version)
        except ShoalError as error:
            await abort(context, error)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(loaded.spec.version) for loaded in model.loaded()],
            platform=f"{generation.artifact}_{generation.spec.runtime}",
            inputs=[_described(spec) for spec in generation.session.inputs],
            outputs=[_described(spec) for spec in generation.session.outputs],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        try:
            return await self._infer(request, _deadline(context))
        except ShoalError as error:
            await abort(context, error)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        deadline = _deadline(context)
        pending: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue(_STREAM_WINDOW)

        async def read() -> None:
            async for request in requests:
                await pending.put(asyncio.create_task(self._stream_answer(request, deadline)))
            await pending.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await pending.get()) is not None:
                yield await task
        finally:
            reader.cancel()
            while not pending.empty():
                if (left := pending.get_nowait()) is not None:
                    left.cancel()

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        try:
            models = [self._engine.model(request.name)] if request.name else list(self._engine)
            loaded = (
                [model.generation(request.version) for model in models]
                if request.version
                else [generation for model in models for generation in model.loaded()]
            )
        except ShoalError as error:
            await abort(context, error)
        return pb.ModelStatisticsResponse(model_stats=[_statistics(generation) for generation in loaded])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        answering = {(m.name, g.spec.version) for m in self._engine for g in m.loaded()}
        response = pb.RepositoryIndexResponse()
        for model in self._engine:
            for slot in model.slots.slots:
                ready = (model.name, slot.version) in answering
                if ready or not request.ready:
                    state = "READY" if ready else "LOADING" if slot.state == "loading" else "UNAVAILABLE"
                    reason = slot.reason or slot.state.value
                    response.models.add(name=model.name, version=str(slot.version), state=state, reason=reason)
        return response

    async def _infer(self, request: pb.ModelInferRequest, deadline: float) -> pb.ModelInferResponse:
        model = self._engine.model(request.model_name)
        generation = model.generation(request.model_version)
        wanted = wanted_outputs(request, generation.session.outputs)
        reply = await model.infer(request.model_version, decode(request), deadline)
        return encode(request, reply, wanted)

    async def _stream_answer(self, request: pb.ModelInferRequest, deadline: float) -> pb.ModelStreamInferResponse:
        """An error names its request through the response's id, as the stream itself stays open."""
        try:
            return pb.ModelStreamInferResponse(infer_response=await self._infer(request, deadline))
        except ShoalError as error:
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed)


def _deadline(context: Context) -> float:
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


def _described(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=NAMES[spec.dtype], shape=spec.shape)


def _statistics(generation: Generation) -> pb.ModelStatistics:
    stats = generation.stats
    return pb.ModelStatistics(
        name=generation.spec.model,
        version=str(generation.spec.version),
        last_inference=int(stats.last * 1000),
        inference_count=stats.rows,
        execution_count=stats.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.gather),
            compute_infer=_duration(stats.run),
            compute_output=_duration(stats.scatter),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=rows, compute_infer=_duration(duration))
            for rows, duration in sorted(stats.batches.items())
        ],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
