"""Torch work in a process of its own: the coordinator asks, `coordinator.worker` answers, and is killed at the deadline.

A request is a folder: `request.json` and the weights go in, `result.json` and files come out. The child's standard output is
progress, its standard error the reason when it fails.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from coordinator.rounds.ports import ModelState
from shared import errors
from shared.bundle import Report
from shared.errors import ChildFailed, ConfigError, DeadlineExceeded, InputError, PeerError, ShoalError
from shared.files import write_atomic
from shared.settings import Scalar, from_mapping
from shared.signing.manifest import FileEntry

REQUEST, RESULT, WEIGHTS = "request.json", "result.json", "weights.safetensors"
FAILED = 1
DEADLINE_S = 900.0
_MAX_LINE = 64 * 1024
Progress = Callable[[str], None]
Kind = Literal["initial", "prune", "bundle", "check"]
T = TypeVar("T")


@dataclass(frozen=True)
class Initial:
    """A fresh model, trained on `data` for `epochs` if a file is named."""

    factory: str
    arguments: dict[str, Scalar] = field(default_factory=dict)
    data: str = ""
    epochs: int = 10
    lr: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.epochs <= 10_000 or not 0 < self.lr <= 10 or self.seed < 0:
            raise ValueError("epochs and seed are not negative, lr is positive and at most 10")


@dataclass(frozen=True)
class Prune:
    """`ratio` of the present channels removed. Examples in `data`, if named, set BatchNorm's statistics right again."""

    model_json: str
    ratio: float
    data: str = ""
    round_to: int = 8


@dataclass(frozen=True)
class MakeBundle:
    """A bundle folder at `out`: int8 calibrated on `data`, judged on the examples that are held out of it."""

    model_json: str
    data: str
    out: str
    lineage: dict[str, Scalar] = field(default_factory=dict)
    recovery_batches: int = 20
    seed: int = 0


@dataclass(frozen=True)
class CheckBundle:
    """Whether the weights of the bundle folder at `path`, whose files are `files`, are those of its network."""

    path: str
    files: dict[str, FileEntry]


Ask = Initial | Prune | MakeBundle | CheckBundle
KINDS: Mapping[str, type[Initial] | type[Prune] | type[MakeBundle] | type[CheckBundle]] = {
    "initial": Initial,
    "prune": Prune,
    "bundle": MakeBundle,
    "check": CheckBundle,
}


@dataclass(frozen=True)
class Result:
    """`result.json`. `error` is a class of `shared.errors`; empty: it worked."""

    model_json: str = ""
    accuracy: float | None = None  # of the float model on held-out examples
    report: Report = field(default_factory=Report)
    error: str = ""
    message: str = ""


@dataclass(frozen=True)
class Trained:
    state: ModelState
    accuracy: float | None


class Builder:
    """Each call is one child process in its own group. Cancelling the call kills the group."""

    def __init__(
        self,
        scratch: Path | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        progress: Progress | None = None,
        command: Sequence[str] = (sys.executable, "-m", "coordinator.worker"),
    ) -> None:
        """`scratch` is where request folders are made: the system's temporary folder if not given. `command` takes such a
        folder as its last argument.
        """
        self._scratch = scratch
        self._deadline_s = deadline_s
        self._progress = progress or _silent
        self._command = tuple(command)

    async def initial(self, ask: Initial) -> Trained:
        """Raises `ConfigError`, `NotFound` and `Malformed` for what was asked, `ChildFailed`, `DeadlineExceeded`."""
        result, weights = await self._run("initial", ask, b"")
        return Trained(ModelState(result.model_json, weights), result.accuracy)

    async def prune(self, ask: Prune, arrays: bytes) -> ModelState:
        """Raises like `initial`, and `UpdateRejected` for arrays that do not fit the model."""
        result, weights = await self._run("prune", ask, arrays)
        return ModelState(result.model_json, weights)

    async def bundle(self, ask: MakeBundle, arrays: bytes) -> Report:
        """Raises like `prune`, and `Conflict` if `ask.out` exists."""
        result, _ = await self._run("bundle", ask, arrays)
        return result.report

    async def check(self, ask: CheckBundle) -> None:
        """Raises what `shared.bundle.read_bundle` raises, `Malformed` for weights of another network, `ChildFailed`,
        `DeadlineExceeded`.
        """
        await self._run("check", ask, b"")

    async def _run(self, kind: Kind, ask: Ask, arrays: bytes) -> tuple[Result, bytes]:
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="shoal-build-", dir=self._scratch) as name:
            folder = Path(name)
            if arrays:
                write_atomic(folder / WEIGHTS, arrays, mode=0o600)
            write_atomic(folder / REQUEST, json.dumps({"kind": kind, "ask": asdict(ask)}).encode())
            try:
                async with asyncio.timeout(self._deadline_s):
                    last = await self._child(folder)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"the worker did not finish {kind} in {self._deadline_s:g} s: give it longer, or less to do"
                ) from error
            result = _read_result(folder, kind, last)
            weights = (folder / WEIGHTS).read_bytes() if kind in ("initial", "prune") else b""
        return result, weights

    async def _child(self, folder: Path) -> str:
        """The last line that the child wrote on standard error."""
        child = await asyncio.create_subprocess_exec(
            *self._command,
            str(folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_MAX_LINE,
        )
        if child.stdout is None or child.stderr is None:
            raise AssertionError("both streams are pipes")
        tail: deque[str] = deque(maxlen=1)
        try:
            await asyncio.gather(_lines(child.stdout, self._progress), _lines(child.stderr, tail.append), child.wait())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        return tail[0] if tail else ""


class BlockingBuilder:
    """A `ModelBuilder` for the job threads: each call runs a `Builder` to its end, or to `kill`."""

    def __init__(self, builder: Builder, *, recovery_batches: int = 20) -> None:
        self._builder = builder
        self._recovery_batches = recovery_batches
        self._lock = threading.Lock()
        self._under_way: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()
        self._killed = False

    def initial(self, factory: str, arguments: Mapping[str, Scalar]) -> ModelState:
        """Untrained. Raises `ConfigError`."""
        ask = Initial(factory, dict(arguments), epochs=0)
        try:
            return self._run(self._builder.initial(ask)).state
        except (errors.NotFound, errors.Malformed) as error:
            raise ConfigError(error.message, path="start", detail=error.detail) from error

    def prune(self, state: ModelState, ratio: float, public_data: str) -> ModelState:
        """Raises like `Builder.prune`, with `ChildFailed` for all that another try may help."""
        with _as_child_failed():
            return self._run(self._builder.prune(Prune(state.model_json, ratio, public_data), state.arrays))

    def bundle(self, state: ModelState, public_data: str, out: Path, lineage: Mapping[str, Scalar]) -> Report:
        """Raises like `Builder.bundle`, with `ChildFailed` for all that another try may help."""
        ask = MakeBundle(state.model_json, public_data, str(out), dict(lineage), self._recovery_batches)
        with _as_child_failed():
            return self._run(self._builder.bundle(ask, state.arrays))

    def check(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        """Raises like `Builder.check`."""
        self._run(self._builder.check(CheckBundle(str(folder), dict(files))))

    def kill(self) -> None:
        """End the workers, whose callers get `ChildFailed`, and start no more."""
        with self._lock:
            self._killed = True
            for loop, task in self._under_way:
                loop.call_soon_threadsafe(task.cancel)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run(self._watched(work))
        except asyncio.CancelledError as error:
            raise ChildFailed("the worker was stopped, as the coordinator stops") from error

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("asyncio.run makes a task")
        entry = (asyncio.get_running_loop(), task)
        with self._lock:
            if self._killed:
                task.cancel()
            self._under_way.add(entry)
        try:
            return await work
        finally:
            with self._lock:
                self._under_way.discard(entry)


@contextlib.contextmanager
def _as_child_failed() -> Iterator[None]:
    """What is wrong with the request itself stays what it is: it would be wrong again."""
    try:
        yield
    except (ChildFailed, InputError, PeerError):
        raise
    except ShoalError as error:
        raise ChildFailed(error.message, detail=error.detail) from error


async def _lines(stream: asyncio.StreamReader, take: Progress) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the limit: a dump, not a message
            continue
        if not line:
            return
        text = line.decode(errors="replace").strip()
        if text:
            take(text[:500])


def _read_result(folder: Path, kind: str, last: str) -> Result:
    try:
        value = json.loads((folder / RESULT).read_bytes())
        result = from_mapping(Result, value, where=RESULT)
    except (OSError, ValueError, ConfigError) as error:
        raise ChildFailed(f"the worker died while it did {kind}", detail=last or str(error)[:200]) from error
    if result.error:
        kinds = {name: item for name, item in vars(errors).items() if _is_error(item)}
        raise kinds.get(result.error, ChildFailed)(result.message)
    return result


def _is_error(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, ShoalError)


def _silent(line: str) -> None:
    """Progress that nobody asked for."""
