"""Live requests to every device over the Open Inference Protocol, from a process of its own: `python -m
simulations.loadgen PLAN.json`.

Open loop: requests leave at Poisson times whatever became of the ones before. Lines of JSON on standard input:
{"killed": NAME, "at": T} says that a device was killed on purpose: nothing is sent to it until its ready file names a
new process; {"stop": true}, or the end of input, ends the run. Standard output gets a line of counts (`LoadStatus`) twice a second.
At the end all answers are written to the plan's `out` (see `answers`).
"""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from protos import inference_pb2 as v2
from protos.inference_pb2_grpc import GRPCInferenceServiceStub
from shared.clock import Clock, SystemClock
from shared.errors import Malformed
from shared.settings import from_mapping
from simulations.answers import Answer, Outage, Outcome, collect, outcome, save_answers
from simulations.processes import read_ready
from simulations.shards import read_shard

_STATUS_EVERY_S = 0.5
_LOOK_AGAIN_S = 0.05
_RECENT = 50  # answers of a device that the shown median is taken over
_BURST_S = 0.2
WRONG_ANSWER = "WRONG_ANSWER"


@dataclass(frozen=True)
class Target:
    """A device: `ready` is its agent's ready file, `shard` the samples to ask about, `rate_hz` how often."""

    name: str
    ready: Path
    shard: Path
    rate_hz: float

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 10_000:
            raise ValueError("rate_hz lies between 0 and 10000")


@dataclass(frozen=True)
class LoadPlan:
    model: str
    out: Path
    targets: tuple[Target, ...]
    seed: int = 0
    timeout_s: float = 10.0


@dataclass(frozen=True)
class LoadStatus:
    """Counts so far. `p50_ms` is of recent answers, 0 before the first; `releases`: how many devices each answered last."""

    answered: int
    failed: int
    cut: int
    held_back: int
    p50_ms: float
    releases: dict[str, int]


class Client:
    """Asks one device. `answers` grows; `version` is the model that answered last."""

    def __init__(self, target: Target, plan: LoadPlan, rng: np.random.Generator, clock: Clock) -> None:
        self.target = target
        self.answers: list[Answer] = []
        self.bad: list[Answer] = []  # those of `answers` without an answer
        self.held_back = 0
        self.version = ""
        self._outages: list[Outage] = []
        self._killed_at: float | None = None
        self._plan = plan
        self._rng = rng
        self._clock = clock
        self._samples, self._labels = read_shard(target.shard)
        self._peer = _Peer(target.ready, plan)

    async def run(self) -> None:
        """Sends until cancelled, then waits for what is under way."""
        asked: set[asyncio.Task[None]] = set()
        try:
            await self._peer.connect()
            due = self._clock.now()
            while True:
                due += self._rng.exponential(1 / self.target.rate_hz)
                await asyncio.sleep(max(0.0, due - self._clock.now()))
                looked = self._clock.now()
                reachable = await self._reachable()
                away = self._clock.now() - looked
                if not reachable:
                    self.held_back += 1
                    continue
                if away > _BURST_S:  # connecting again took a while: no burst to make up for it
                    self.held_back += int(away * self.target.rate_hz)
                    due += away
                task = asyncio.create_task(self._ask(due))
                asked.add(task)
                task.add_done_callback(asked.discard)
        finally:
            if asked:
                await asyncio.wait(asked)
            await self._peer.close()

    def killed(self, at: float) -> None:
        """The device was killed on purpose at `at`."""
        self._killed_at = at

    def outages(self, now: float) -> list[Outage]:
        """Those that are over, and the one that is not, up to `now`."""
        return self._outages + ([] if self._killed_at is None else [Outage(self.target.name, self._killed_at, now)])

    async def _reachable(self) -> bool:
        """False while it is known to be gone. A device that came back under another address is connected to first."""
        if self._killed_at is None and not self._peer.lost:
            return True
        if not self._peer.moved():
            return self._killed_at is None
        await self._peer.connect()
        if self._killed_at is not None:
            self._outages.append(Outage(self.target.name, self._killed_at, self._clock.now()))
            self._killed_at = None
        return True

    async def _ask(self, due: float) -> None:
        row = int(self._rng.integers(len(self._samples)))
        sent = self._clock.now()
        reason, response, correct = "", v2.ModelInferResponse(), None
        try:
            response = await self._peer.infer(self._samples[row : row + 1])
            correct = _prediction(response) == int(self._labels[row])
            self.version = response.model_version
        except grpc.aio.AioRpcError as error:
            reason = error.code().name
        except Malformed:
            reason = WRONG_ANSWER
        digest = response.parameters["digest"].string_param
        ended = self._clock.now()
        answer = Answer(self.target.name, due, sent, ended, reason, response.model_version, digest, correct)
        self.answers.append(answer)
        if reason:
            self.bad.append(answer)


class _Peer:
    """The connection to one device's inference service; its ready file says where that is."""

    def __init__(self, ready: Path, plan: LoadPlan) -> None:
        self.lost = False
        self._ready = ready
        self._plan = plan
        self._at: tuple[int, str] = (0, "")
        self._input = ""
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    def _named(self) -> tuple[int, str]:
        ready = read_ready(self._ready)
        return int(ready.get("pid", 0)), str(ready.get("inference", ""))

    def moved(self) -> bool:
        """True when the ready file names a process or port that this is not connected to."""
        named = self._named()
        return named != self._at and all(named)

    async def connect(self) -> None:
        """Wait until the device says that it is ready, then until its model answers; ask what the model takes."""
        self._at, self._input = (0, ""), ""
        while not self._input:
            if self.moved():
                await self.close()
                self._at = self._named()
                self._channel = grpc.aio.insecure_channel(self._at[1])
                self._stub = GRPCInferenceServiceStub(self._channel)
            if self._stub is not None:
                with contextlib.suppress(grpc.aio.AioRpcError):  # it may listen before its model is loaded
                    request = v2.ModelMetadataRequest(name=self._plan.model)
                    metadata = await self._stub.ModelMetadata(request, timeout=self._plan.timeout_s)
                    self._input = metadata.inputs[0].name
            if not self._input:
                await asyncio.sleep(_LOOK_AGAIN_S)
        self.lost = False

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(grace=self._plan.timeout_s)
            self._channel = self._stub = None

    async def infer(self, sample: npt.NDArray[np.float32]) -> v2.ModelInferResponse:
        """Raises `grpc.aio.AioRpcError`."""
        tensor = v2.ModelInferRequest.InferInputTensor(name=self._input, datatype="FP32", shape=sample.shape)
        request = v2.ModelInferRequest(
            model_name=self._plan.model, inputs=[tensor], raw_input_contents=[sample.astype("<f4").tobytes()]
        )
        try:
            response: v2.ModelInferResponse = await self._stub.ModelInfer(request, timeout=self._plan.timeout_s)
        except grpc.aio.AioRpcError as error:
            self.lost |= error.code() is grpc.StatusCode.UNAVAILABLE
            raise
        return response


def _prediction(response: v2.ModelInferResponse) -> int:
    """The class with the highest logit. Raises `Malformed` for an answer that is not one row of finite numbers."""
    try:
        (output,) = response.outputs
        raw = response.raw_output_contents
        logits = np.frombuffer(raw[0], "<f4") if raw else np.array(output.contents.fp32_contents, np.float32)
        logits = logits.reshape(tuple(output.shape))
    except (ValueError, IndexError) as error:
        raise Malformed("an answer that does not fit its shape") from error
    if logits.shape[0] != 1 or logits.size < 2 or not np.isfinite(logits).all():
        raise Malformed("an answer that is not one row of finite numbers")
    return int(logits.argmax())


class Load:
    """All devices of a plan."""

    def __init__(self, plan: LoadPlan, clock: Clock | None = None) -> None:
        self._plan = plan
        self._clock = clock or SystemClock()
        seeds = np.random.SeedSequence(plan.seed).spawn(len(plan.targets))
        self.clients = {
            target.name: Client(target, plan, np.random.default_rng(seed), self._clock)
            for target, seed in zip(plan.targets, seeds, strict=True)
        }

    def now(self) -> float:
        """By the clock that the answers' times are taken from."""
        return self._clock.now()

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Send until told to stop, then write the answers."""
        asking = [asyncio.create_task(client.run()) for client in self.clients.values()]
        telling = asyncio.create_task(self._tell())
        obeying = asyncio.create_task(self._obey(commands))
        await asyncio.wait([obeying, telling, *asking], return_when=asyncio.FIRST_COMPLETED)
        for task in (telling, obeying, *asking):
            task.cancel()
        ends = await asyncio.gather(telling, obeying, *asking, return_exceptions=True)
        self.save()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _tell(self) -> None:
        while True:
            print(json.dumps(asdict(self.status())), flush=True)
            await asyncio.sleep(_STATUS_EVERY_S)

    async def _obey(self, commands: asyncio.StreamReader) -> None:
        while line := await commands.readline():
            command = json.loads(line)
            if command.get("stop"):
                return
            self.clients[command["killed"]].killed(float(command["at"]))

    def status(self) -> LoadStatus:
        clients, now = self.clients.values(), self._clock.now()
        counts = Counter(outcome(answer, client.outages(now)) for client in clients for answer in client.bad)
        recent = [
            (answer.ended - answer.sent) * 1e3
            for client in clients
            for answer in client.answers[-_RECENT:]
            if not answer.reason
        ]
        return LoadStatus(
            answered=sum(len(client.answers) - len(client.bad) for client in clients),
            failed=counts[Outcome.FAILED],
            cut=counts[Outcome.CUT],
            held_back=sum(client.held_back for client in clients),
            p50_ms=float(np.median(recent)) if recent else 0.0,
            releases=dict(Counter(client.version for client in clients if client.version)),
        )

    def save(self) -> None:
        clients, now = self.clients.values(), self._clock.now()
        answers = collect(
            (answer for client in clients for answer in client.answers),
            [outage for client in clients for outage in client.outages(now)],
            held_back=sum(client.held_back for client in clients),
        )
        save_answers(self._plan.out, answers)


async def _serve(plan: LoadPlan) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await Load(plan).run(reader)


def main() -> None:
    plan = from_mapping(LoadPlan, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), where=sys.argv[1])
    asyncio.run(_serve(plan))


if __name__ == "__main__":
    main()
