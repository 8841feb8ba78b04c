"""The product's own commands, called as an admin or a device's owner would, and their `--json` output as frozen values.

This is the only place in the simulations that knows options and output of `coordinator` and `edge-agent`.
"""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.cli.client import WATCHED_FAILED
from shared.errors import ChildFailed, Malformed
from simulations.processes import Child, Processes, program

_WATCH_END = ""


@dataclass(frozen=True)
class Serving:
    model: str
    release: int
    bundle_digest: str
    proven: bool


@dataclass(frozen=True)
class Device:
    id: str
    name: str
    state: str
    connected: bool
    models: tuple[Serving, ...]

    def serves(self, model: str) -> Serving | None:
        """What it says it serves for a model, proven or not."""
        return next((one for one in self.models if one.model == model), None)


@dataclass(frozen=True)
class Release:
    name: str
    release: int
    bundle_digest: str
    files: Mapping[str, int]
    lineage: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    id: str
    state: str
    rounds_committed: int
    rounds_total: int
    model: str
    release: int
    reason: str


@dataclass(frozen=True)
class Event:
    """`kind` is a round's state, or `job.STATE`; rollouts have their own."""

    at: float
    round: int
    kind: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class RoundDevice:
    name: str
    outcome: str
    reason: str
    weight: int
    bytes_down: int
    bytes_up: int
    seconds: float


@dataclass(frozen=True)
class Round:
    round: int
    attempt: int
    state: str
    started_at: float
    ended_at: float
    total_weight: int
    metrics: Mapping[str, float]
    devices: tuple[RoundDevice, ...]
    bytes_down: int
    bytes_up: int
    reason: str

    def with_outcome(self, outcome: str) -> tuple[RoundDevice, ...]:
        return tuple(one for one in self.devices if one.outcome == outcome)


@dataclass(frozen=True)
class RolloutDevice:
    """`receipt` is the device's signed word (see `shared.signing.receipts`), empty while there is none."""

    name: str
    stage: int
    state: str
    reason: str
    receipt: Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    id: str
    model: str
    release: int
    state: str
    stage: int
    stages: int
    reason: str
    devices: tuple[RolloutDevice, ...]
    events: tuple[Event, ...]


def _serving(value: Any) -> Serving:
    return Serving(value["model"], int(value["release"]), value["bundle_digest"], bool(value["proven"]))


def device(value: Any) -> Device:
    models = tuple(_serving(one) for one in value["models"])
    return Device(value["id"], value["name"], value["state"], bool(value["connected"]), models)


def release(value: Any) -> Release:
    files = {name: int(size) for name, size in value["files"].items()}
    lineage, report = value["lineage"] or {}, value["report"] or {}
    return Release(value["name"], int(value["release"]), value["bundle_digest"], files, lineage, report)


def job(value: Any) -> Job:
    return Job(
        value["id"],
        value["state"],
        int(value["rounds_committed"]),
        int(value["rounds_total"]),
        value["model"],
        int(value["release"]),
        value["reason"],
    )


def event(value: Any) -> Event:
    return Event(float(value["at"]), int(value["round"]), value["kind"], value["detail"] or {})


def round_(value: Any) -> Round:
    devices = tuple(
        RoundDevice(
            one["name"],
            one["outcome"],
            one["reason"],
            int(one["weight"]),
            int(one["bytes_down"]),
            int(one["bytes_up"]),
            float(one["seconds"]),
        )
        for one in value["devices"]
    )
    return Round(
        round=int(value["round"]),
        attempt=int(value["attempt"]),
        state=value["state"],
        started_at=float(value["started_at"]),
        ended_at=float(value["ended_at"]),
        total_weight=int(value["total_weight"]),
        metrics={name: float(number) for name, number in value["metrics"].items()},
        devices=devices,
        bytes_down=int(value["bytes_down"]),
        bytes_up=int(value["bytes_up"]),
        reason=value["reason"],
    )


def rollout(value: Any) -> Rollout:
    devices = tuple(
        RolloutDevice(one["name"], int(one["stage"]), one["state"], one["reason"], one["receipt"] or {})
        for one in value["devices"]
    )
    return Rollout(
        id=value["id"],
        model=value["model"],
        release=int(value["release"]),
        state=value["state"],
        stage=int(value["stage"]),
        stages=int(value["stages"]),
        reason=value["reason"],
        devices=devices,
        events=tuple(event(one) for one in value["events"]),
    )


def parsed(text: str, what: str) -> Any:
    """JSON that a command printed. Raises `Malformed`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Malformed(f"{what} did not print JSON", detail=text[:120]) from error


class Coordinator:
    """`coordinator … --home HOME`. Every method raises `ChildFailed` with the command's own line when it fails."""

    def __init__(self, processes: Processes, home: Path) -> None:
        self.home = home
        self._processes = processes

    async def init(self) -> None:
        """With ports that the system chooses; `run/ready.json` says which."""
        await self._call("init", "--port-base", "0")

    async def serve(self, ports: Mapping[str, int]) -> Child:
        """`ports` by name, as in `run/ready.json`: where agents know it from before. Others are the system's choice."""
        options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
        argv = [program("coordinator"), "serve", *options, "--home", str(self.home)]
        return await self._processes.spawn("coordinator", argv)

    async def tokens(self, count: int) -> list[str]:
        return [str(one) for one in (await self._json("token", "create", "--count", str(count)))["tokens"]]

    async def devices(self) -> tuple[Device, ...]:
        return tuple(device(one) for one in await self._json("device", "list"))

    async def publish(self, bundle: Path, name: str) -> Release:
        return release(await self._json("model", "publish", str(bundle), "--name", name))

    async def release(self, model: str, number: int = 0) -> Release:
        """The newest without a number."""
        wanted = ["--release", str(number)] if number else []
        return release(await self._json("model", "show", model, *wanted))

    async def submit(self, file: Path) -> Job:
        return job(await self._json("job", "submit", str(file)))

    async def job(self, name: str) -> Job:
        return job(await self._json("job", "show", name))

    async def rounds(self, name: str) -> tuple[Round, ...]:
        return tuple(round_(one) for one in await self._json("round", "list", name))

    async def watch_job(self, name: str) -> AsyncGenerator[Event, None]:
        """Its events from the first on, until it ends. Close it to stop watching earlier."""
        async with contextlib.aclosing(self._watch("job", "watch", name)) as lines:
            async for line in lines:
                yield event(line)

    async def start_rollout(self, model: str, number: int, plan: Path | None = None) -> Rollout:
        options = ["--plan", str(plan)] if plan else []
        return rollout(await self._json("rollout", "start", model, "--release", str(number), *options))

    async def rollout(self, name: str) -> Rollout:
        return rollout(await self._json("rollout", "show", name))

    async def watch_rollout(self, name: str) -> AsyncGenerator[Rollout, None]:
        """Snapshots until it ends. Close it to stop watching earlier."""
        async with contextlib.aclosing(self._watch("rollout", "watch", name)) as lines:
            async for line in lines:
                yield rollout(line)

    async def _call(self, *words: str) -> str:
        return await self._processes.call([program("coordinator"), *words, "--home", str(self.home)])

    async def _json(self, *words: str) -> Any:
        return parsed(await self._call(*words, "--json"), f"coordinator {' '.join(words[:2])}")

    async def _watch(self, *words: str) -> AsyncGenerator[Any, None]:
        argv = [program("coordinator"), *words, "--json", "--home", str(self.home)]
        name = "-".join(["coordinator", *words])
        child = await self._processes.spawn(name, argv, talk=True)
        try:
            while (line := await child.read_line()) != _WATCH_END:
                yield parsed(line, name)
            if await child.wait() not in (0, WATCHED_FAILED):
                raise child.failure()
        finally:
            await self._processes.stop(child)


class Agent:
    """`edge-agent … --home HOME` for one device."""

    def __init__(self, processes: Processes, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self._processes = processes

    @property
    def ready(self) -> Path:
        """The file that says that it serves, and where."""
        return self.home / "run" / "ready.json"

    async def enroll(self, address: str, token_file: Path) -> None:
        words = ["enroll", "--coordinator", address, "--name", self.name, "--token-file", str(token_file)]
        await self._call(*words)

    async def ingest(self, shard: Path) -> None:
        await self._call("ingest", str(shard))

    async def run(self) -> Child:
        return await self._processes.spawn(self.name, [program("edge-agent"), "run", "--home", str(self.home)])

    async def status(self) -> Mapping[str, Any]:
        value = parsed(await self._call("status", "--json"), "edge-agent status")
        if not isinstance(value, dict):
            raise Malformed("edge-agent status printed no object")
        return value

    async def _call(self, *words: str) -> str:
        return await self._processes.call([program("edge-agent"), *words, "--home", str(self.home)])


async def last(snapshots: AsyncIterator[Rollout]) -> Rollout:
    """Follow a rollout to its end. Raises `ChildFailed` when there was no snapshot."""
    found = None
    async for snapshot in snapshots:
        found = snapshot
    if found is None:
        raise ChildFailed("the rollout was not shown")
    return found
