"""A client of a device's own inference service: how the agent proves that a version answers requests."""

from dataclasses import dataclass

import grpc.aio

from edge_agent.inference.codec import DATATYPES, NAMES, outputs_of
from edge_agent.inference.rpc import CLIENT_OPTIONS
from edge_agent.runtimes.port import Array
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import GRPCInferenceServiceStub
from shared.errors import Malformed, ShoalError
from shared.rpc_errors import typed_errors


@dataclass(frozen=True)
class Answer:
    """`logits`: the model's first output. `version`, `digest`, `runtime`: of the version that gave them."""

    logits: Array
    version: int
    digest: str
    runtime: str


@dataclass(frozen=True)
class _Input:
    name: str
    dtype: str


class Probe:
    """Asks models with one input over one persistent channel, which must be opened in a running event loop."""

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._inputs: dict[str, _Input] = {}

    async def infer(self, model: str, x: Array, version: str = "") -> Answer:
        """`x`: a batch, cast to the model's type. Raises `NotFound`, `Malformed`, `Overloaded`, `Unavailable`."""
        try:
            with typed_errors():
                taken = self._inputs.get(model) or await self._input_of(model, version)
                request = pb.ModelInferRequest(model_name=model, model_version=version)
                request.inputs.add(name=taken.name, datatype=NAMES[taken.dtype], shape=x.shape)
                request.raw_input_contents.append(x.astype(taken.dtype, copy=False).tobytes())
                response = await self._stub.ModelInfer(request, timeout=self._timeout_s)
        except ShoalError:
            self._inputs.pop(model, None)  # the model may have been replaced by one with another input
            raise
        outputs = outputs_of(response)
        if not outputs or not response.model_version.isdigit():
            raise Malformed(f"model {model!r} answered without outputs or without its version")
        parameters = response.parameters
        return Answer(
            logits=next(iter(outputs.values())),
            version=int(response.model_version),
            digest=parameters["digest"].string_param,
            runtime=parameters["runtime"].string_param,
        )

    async def _input_of(self, model: str, version: str) -> _Input:
        request = pb.ModelMetadataRequest(name=model, version=version)
        metadata = await self._stub.ModelMetadata(request, timeout=self._timeout_s)
        if len(metadata.inputs) != 1 or metadata.inputs[0].datatype not in DATATYPES:
            raise Malformed(f"model {model!r} has {len(metadata.inputs)} inputs: a probe asks models with one")
        taken = _Input(metadata.inputs[0].name, DATATYPES[metadata.inputs[0].datatype])
        self._inputs[model] = taken
        return taken

    async def close(self) -> None:
        await self._channel.close()
