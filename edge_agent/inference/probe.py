"""A small Open Inference Protocol client: evaluation and proofs go through the path that applications use."""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
import numpy as np

from edge_agent.inference.codec import DATATYPES, NAMES, outputs_of
from edge_agent.inference.rpc import MESSAGE_OPTIONS, error_of
from edge_agent.runtimes.port import Array
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from shared.errors import Conflict, Malformed

_IN_FLIGHT = 4  # requests at once: enough to keep the service busy, too few to fill its queue


@dataclass(frozen=True)
class Answer:
    """`logits`: the model's first output, one row for each row asked. `version` and `digest`: who answered."""

    logits: Array
    version: str
    digest: str


class Probe:
    """One persistent channel. Raises the classes of `shared.errors` that stand for the service's status."""

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=MESSAGE_OPTIONS)
        self._stub = pb_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._timeout_s = timeout_s
        self._inputs: dict[tuple[str, str], tuple[str, str]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def infer(self, model: str, x: Array, version: str = "") -> Answer:
        """One request with the rows of `x` for the model's only input, cast to its type."""
        name, datatype = await self._input(model, version)
        array = np.ascontiguousarray(x, DATATYPES[datatype])
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
        try:
            response: pb.ModelInferResponse = await self._stub.ModelInfer(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        outputs = outputs_of(response)
        if not outputs:
            raise Malformed(f"model {model!r} answered without outputs")
        logits = next(iter(outputs.values()))
        return Answer(logits, response.model_version, response.parameters["digest"].string_param)

    async def infer_many(self, model: str, x: Array, version: str = "", *, rows: int = 16) -> Answer:
        """All rows of `x` in requests of `rows`, a few at a time. Raises `Conflict` when the model was swapped
        meanwhile: such an answer would be of two models."""
        if len(x) == 0:
            raise Malformed("nothing to ask: there are no rows")
        limit = asyncio.Semaphore(_IN_FLIGHT)

        async def ask(start: int) -> Answer:
            async with limit:
                return await self.infer(model, x[start : start + rows], version)

        answers = await asyncio.gather(*(ask(start) for start in range(0, len(x), rows)))
        if len({(answer.version, answer.digest) for answer in answers}) > 1:
            raise Conflict(f"model {model!r} was swapped while it answered: ask for a fixed version")
        logits = np.concatenate([answer.logits for answer in answers])
        return Answer(logits, answers[0].version, answers[0].digest)

    async def _input(self, model: str, version: str) -> tuple[str, str]:
        """Name and datatype of the model's only input; versions of one model share them."""
        known = self._inputs.get((model, version))
        if known is None:
            request = pb.ModelMetadataRequest(name=model, version=version)
            try:
                metadata: pb.ModelMetadataResponse = await self._stub.ModelMetadata(request, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                raise error_of(error) from error
            if len(metadata.inputs) != 1 or metadata.inputs[0].datatype not in NAMES.values():
                raise Malformed(f"model {model!r} has {len(metadata.inputs)} inputs: a probe fills exactly one")
            known = self._inputs[model, version] = (metadata.inputs[0].name, metadata.inputs[0].datatype)
        return known
