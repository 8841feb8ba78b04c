"""The trainer's side of its socket: `edge.v1.Trainer`, one call at a time."""

import contextlib
import os
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from edge_agent.trainer import wire
from edge_agent.trainer.worker import Worker
from protos.edge.v1 import trainer_pb2, trainer_pb2_grpc
from shared.errors import ChildFailed, ShoalError
from shared.rpc_errors import status_of, trailers_of


class TrainerServicer(trainer_pb2_grpc.TrainerServicer):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def Run(self, request: trainer_pb2.RunRequest, context: Any) -> trainer_pb2.RunResponse:
        with _statuses(context):
            return wire.outcome_to_proto(self._worker.run(wire.task_from_proto(request)))

    def Specialise(self, request: trainer_pb2.SpecialiseRequest, context: Any) -> trainer_pb2.SpecialiseResponse:
        with _statuses(context):
            self._worker.specialise(wire.request_from_proto(request))
            return trainer_pb2.SpecialiseResponse()


@contextlib.contextmanager
def _statuses(context: Any) -> Iterator[None]:
    try:
        yield
    except ShoalError as error:
        raise _abort(context, error) from error
    except Exception as error:
        raise _abort(context, ChildFailed(f"the trainer failed: {type(error).__name__}")) from error
    except BaseException:  # noqa: BLE001
        os._exit(1)  # native code panicked: nothing in this process can be relied on


def _abort(context: Any, error: ShoalError) -> Exception:
    context.set_trailing_metadata(trailers_of(error))
    context.abort(status_of(error), str(error))  # raises
    return error


def start(worker: Worker, socket: Path) -> grpc.Server:
    """Listening when it returns. One thread: torch is not to be used by two at once, and keys belong to one."""
    server = grpc.server(
        futures.ThreadPoolExecutor(1, thread_name_prefix="trainer"),
        options=wire.CHANNEL_OPTIONS,
    )
    trainer_pb2_grpc.add_TrainerServicer_to_server(TrainerServicer(worker), server)
    socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{socket}")
    socket.chmod(0o600)  # its folder is for the agent's user alone already
    server.start()
    return server
