"""What a trainer does, wherever it runs: a Flower message through a registered app behind the secure mod. Blocking.

The mod is always there: a task that demands secure aggregation is refused unless its reply is masked, whatever app it names. Each
(app, node) keeps one Flower `Context` while the trainer lives, or until `MOST_CONTEXTS` others were used after it. Its state holds
keys of rounds under way, so it is never written to disk; what an app wants to keep it writes into its own state folder.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.device_profile import PROFILE_FILE, read_profile
from edge_agent.trainer.ports import (
    APP_NOT_LOADED,
    APP_RAISED,
    REFUSED,
    LocalTask,
    Piece,
    SpecialiseRequest,
    TaskOutcome,
)
from edge_agent.trainer.variant import Variant
from shared.blobs import FolderBlobs
from shared.errors import InputError, NotFound, PeerError, ShoalError, StorageFull

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp

_log = structlog.get_logger()
INLINE_BYTES = 4096
MOST_CONTEXTS = 8  # a device has one node id, and few apps at a time
Mod = Callable[..., Any]


@dataclass(frozen=True)
class WorkerSettings:
    """Folders of one device. `require_secure`: nothing plain, whatever the task says. `max_epsilon`, if not 0: nothing at all but
    rounds in which devices add noise, and of those only so many.
    """

    home: Path
    identity: Path
    data: Path
    state: Path
    outgoing: Path
    device: str = "cpu"
    require_secure: bool = False
    min_group: int = 3
    min_corrupt: float = 0.05
    max_epsilon: float = 0.0
    max_epsilon_delta: float = 1e-6
    log_level: str = "info"
    log_json: bool = False


class Worker:
    """One thread at a time. `make_mod` is asked for the secure mod; tests may give another."""

    def __init__(self, settings: WorkerSettings, make_mod: Callable[[str, bool], Mod] | None = None) -> None:
        self._settings = settings
        self._make_mod = make_mod or self._secure_mod
        self._apps: dict[tuple[str, bool], ClientApp] = {}
        self._contexts: dict[tuple[str, int], Context] = {}
        self._measured: dict[str, float] = {}
        self._outgoing = FolderBlobs(settings.outgoing, durable=False)

    def forget(self) -> None:
        self._contexts.clear()
        self._apps.clear()

    # ---- tasks

    def run(self, task: LocalTask) -> TaskOutcome:
        """Never raises for what a task, app or device can cause."""
        self._measured = {}
        try:
            app = self._app(task.client_app, plain_allowed=not (task.secure or self._settings.require_secure))
        except NotFound as error:
            return TaskOutcome(error_code=APP_NOT_LOADED, error_reason=error.message)
        except ShoalError as error:
            return TaskOutcome(error_code=REFUSED, error_reason=str(error))
        except Exception as error:  # noqa: BLE001  # an app that cannot be imported costs this task only
            return self._app_failed(task, error, APP_NOT_LOADED)
        try:
            message = self._message(task)
            reply = app(message, self._context(task))
            if reply.has_error():
                return TaskOutcome(error_code=reply.error.code, error_reason=(reply.error.reason or "")[:500])
            return TaskOutcome(self._pieces(reply.content), metrics=dict(self._measured))
        except (InputError, PeerError, StorageFull) as error:  # our own words, which hold no examples
            return TaskOutcome(error_code=APP_RAISED, error_reason=f"{type(error).__name__}: {error.message}"[:500])
        except Exception as error:  # noqa: BLE001  # whatever an app raises costs this task only
            return self._app_failed(task, error, APP_RAISED)

    @staticmethod
    def _app_failed(task: LocalTask, error: Exception, code: int) -> TaskOutcome:
        """The coordinator learns the kind of failure; the text, which may quote examples, stays in the device's log."""
        _log.warning("client app failed", app=task.client_app, task=task.task_id, exc_info=error)
        reason = f"the app raised {type(error).__name__}; see the device's log"
        return TaskOutcome(error_code=code, error_reason=reason)

    def _app(self, name: str, *, plain_allowed: bool) -> "ClientApp":
        key = (name, plain_allowed)
        if key not in self._apps:
            from edge_agent.client_app import load_app

            self._apps[key] = load_app(name, [self._make_mod(name, plain_allowed), self._measure])
        return self._apps[key]

    def _secure_mod(self, client_app: str, plain_allowed: bool) -> Mod:
        from edge_agent.config import Home
        from edge_agent.flower_node import read_identity
        from edge_agent.ledger import FileLedgers
        from edge_agent.secure_mod import ModPolicy, make_secure_mod
        from edge_agent.storage import DataStore
        from shared.privacy.accountant import Budget
        from shared.secagg.policy import PrivacyPolicy, of_a_device

        settings = self._settings
        identity, verifier = read_identity(settings.identity)
        own = Budget(settings.max_epsilon, settings.max_epsilon_delta) if settings.max_epsilon else None
        crowd = of_a_device(settings.min_group, settings.min_corrupt)
        policy = ModPolicy(crowd, allow_plain=plain_allowed, privacy=PrivacyPolicy(own))
        ledgers = FileLedgers(Home(settings.home).ledger, DataStore(settings.data).epochs, own)
        return make_secure_mod(identity, verifier, policy, client_app=client_app, ledgers=ledgers)

    def _measure(self, message: "Message", context: "Context", call_next: Any) -> "Message":
        """The innermost mod: what the app itself measured."""
        reply: Message = call_next(message, context)
        if not reply.has_error():
            for record in reply.content.metric_records.values():
                self._measured |= {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
        return reply

    def _context(self, task: LocalTask) -> "Context":
        from flwr.app import Context, RecordDict

        key = (task.client_app, task.node_id)
        context = self._contexts.pop(key, None)
        if context is None:
            state_dir = self._settings.state / task.client_app
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            node_config: dict[str, Any] = {
                "data_dir": str(self._settings.data),
                "state_dir": str(state_dir),
                "device": self._settings.device,
            }
            context = Context(task.run_id, task.node_id, node_config, RecordDict(), {})
        self._contexts[key] = context  # the last one used comes last
        for oldest in list(self._contexts)[:-MOST_CONTEXTS]:
            del self._contexts[oldest]
        context.run_id = task.run_id
        return context

    def _message(self, task: LocalTask) -> "Message":
        from flwr.app import RecordDict

        from shared.flower import decode_records, new_message, stamp

        content = RecordDict()
        for piece in task.pieces:
            data = piece.inline if piece.path is None else piece.path.read_bytes()
            content.update(decode_records(data, piece.digest))
        message = new_message(content, run_id=task.run_id, node_id=task.node_id, message_type=task.message_type)
        stamp(message, run_id=task.run_id, message_id=task.message_id)
        return message

    def _pieces(self, content: "RecordDict") -> tuple[Piece, ...]:
        from flwr.app import RecordDict

        from shared.flower import encode_records

        pieces = []
        for name, record in content.items():
            encoded = encode_records(RecordDict({name: record}))
            if len(encoded) <= INLINE_BYTES:
                pieces.append(Piece(inline=encoded))
            else:
                digest = self._outgoing.write(encoded)
                pieces.append(Piece(path=self._outgoing.path(digest), digest=digest))
        return tuple(pieces)

    # ---- releases

    def specialise(self, request: SpecialiseRequest) -> Variant:
        """Raises what `edge_agent.trainer.specialise` and `shared.bundle.read_bundle` raise, `Conflict` when this device has
        examples and none is of the model's kind."""
        from edge_agent.storage import DataStore
        from edge_agent.trainer.specialise import specialise
        from shared.bundle import read_bundle

        bundle = read_bundle(request.bundle_dir, request.files)
        schema = bundle.spec.schema
        try:
            data = DataStore(self._settings.data).split(shape=schema.shape, classes=len(schema.classes))
        except NotFound:
            data = None
        begun = time.perf_counter()
        variant = specialise(
            bundle,
            data,
            read_profile(self._settings.home / PROFILE_FILE),
            request.out_dir,
            gate=request.gate,
            recovery_batches=request.recovery_batches,
            seed=request.seed,
        )
        _log.info(
            "release specialised",
            runtime=variant.runtime,
            origin=variant.origin,
            fallback=variant.fallback,
            seconds=round(time.perf_counter() - begun, 2),
        )
        return variant


def settings_to_json(settings: WorkerSettings) -> Mapping[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
