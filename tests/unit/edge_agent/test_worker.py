"""What a trainer's worker keeps between tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from edge_agent.trainer.ports import LocalTask, Piece
from edge_agent.trainer.worker import MOST_CONTEXTS, Worker, WorkerSettings
from shared.flower import encode_records
from shared.ids import TaskId


def test_contexts_of_the_apps_and_nodes_used_last_are_kept(tmp_path: Path) -> None:
    """Whoever asks under ever new node ids fills no memory, and what is used goes on."""
    begun: list[int] = []

    def make_mod(app: str, plain_allowed: bool) -> Callable[..., Message]:
        def mod(message: Message, context: Context, call_next: Any) -> Message:
            if "seen" not in context.state:
                begun.append(context.node_id)
            context.state["seen"] = ConfigRecord({})
            reply: Message = call_next(message, context)
            return reply

        return mod

    settings = WorkerSettings(
        tmp_path, tmp_path / "identity", tmp_path / "data", tmp_path / "state", tmp_path / "outgoing"
    )
    worker = Worker(settings, make_mod)
    piece = Piece(inline=encode_records(RecordDict({"arrays": ArrayRecord({"w": Array("u", (0,), "ours", b"")})})))

    def ask(node: int) -> None:
        task = TaskId(f"tsk-{node}")
        outcome = worker.run(LocalTask(task, 7, node, task, "train", "echo", False, 60.0, (piece,)))
        assert outcome.error_code == 0, outcome.error_reason

    for node in range(2, MOST_CONTEXTS + 2):
        ask(1)
        ask(node)
    assert begun == list(range(1, MOST_CONTEXTS + 2))
    ask(MOST_CONTEXTS + 1)
    ask(1)
    assert len(begun) == MOST_CONTEXTS + 1
    ask(2)
    assert begun[-1] == 2
    assert len(begun) == MOST_CONTEXTS + 2
