"""Protobuf ↔ the values of `ports`, for both ends of the socket."""

from pathlib import Path

from edge_agent.trainer.ports import LocalTask, Piece, SignedFile, SpecialiseRequest, TaskOutcome
from protos.edge.v1 import trainer_pb2 as pb
from shared.errors import Malformed
from shared.ids import Digest, TaskId
from shared.session import Gate

CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20))


def piece_to_proto(piece: Piece) -> pb.Piece:
    if piece.path is None:
        return pb.Piece(inline=piece.inline)
    return pb.Piece(path=str(piece.path), digest=piece.digest or "")


def piece_from_proto(piece: pb.Piece) -> Piece:
    match piece.WhichOneof("content"):
        case "inline" if piece.inline:
            return Piece(inline=piece.inline)
        case "path" if piece.path:
            return Piece(path=Path(piece.path), digest=Digest(piece.digest) if piece.digest else None)
    raise Malformed("an empty piece")


def task_to_proto(task: LocalTask) -> pb.RunRequest:
    return pb.RunRequest(
        task_id=task.task_id,
        run_id=task.run_id,
        node_id=task.node_id,
        message_id=task.message_id,
        message_type=task.message_type,
        client_app=task.client_app,
        secure=task.secure,
        pieces=[piece_to_proto(piece) for piece in task.pieces],
    )


def task_from_proto(request: pb.RunRequest) -> LocalTask:
    """The deadline is the supervisor's to keep."""
    return LocalTask(
        task_id=TaskId(request.task_id),
        run_id=request.run_id,
        node_id=request.node_id,
        message_id=request.message_id,
        message_type=request.message_type,
        client_app=request.client_app,
        secure=request.secure,
        timeout_s=float("inf"),
        pieces=tuple(map(piece_from_proto, request.pieces)),
    )


def outcome_to_proto(outcome: TaskOutcome) -> pb.RunResponse:
    return pb.RunResponse(
        pieces=[piece_to_proto(piece) for piece in outcome.pieces],
        error_code=outcome.error_code,
        error_reason=outcome.error_reason,
        metrics=dict(outcome.metrics),
    )


def outcome_from_proto(response: pb.RunResponse) -> TaskOutcome:
    return TaskOutcome(
        pieces=tuple(map(piece_from_proto, response.pieces)),
        error_code=response.error_code,
        error_reason=response.error_reason,
        metrics=dict(response.metrics),
    )


def request_to_proto(request: SpecialiseRequest) -> pb.SpecialiseRequest:
    gate = request.gate
    return pb.SpecialiseRequest(
        bundle_dir=str(request.bundle_dir),
        out_dir=str(request.out_dir),
        requantize=gate.requantize,
        recovery_batches=request.recovery_batches,
        seed=request.seed,
        max_logit_difference=gate.max_logit_difference,
        min_top1_agreement=gate.min_top1_agreement,
        accuracy_budget=gate.accuracy_budget,
        files={name: pb.SignedFile(digest=file.digest, size=file.size) for name, file in request.files.items()},
    )


def request_from_proto(request: pb.SpecialiseRequest) -> SpecialiseRequest:
    return SpecialiseRequest(
        bundle_dir=Path(request.bundle_dir),
        out_dir=Path(request.out_dir),
        gate=Gate(
            accuracy_budget=request.accuracy_budget,
            max_logit_difference=request.max_logit_difference,
            min_top1_agreement=request.min_top1_agreement,
            requantize=request.requantize,
        ),
        recovery_batches=request.recovery_batches,
        seed=request.seed,
        timeout_s=float("inf"),
        files={name: SignedFile(Digest(file.digest), file.size) for name, file in request.files.items()},
    )
