"""What every test of this folder has: a process identity for Flower, and a group of five at the ready."""

from collections.abc import Iterator

import pytest
from flwr.supercore.task_identity import TaskIdentity

from shared.flower import assume_identity
from tests.protocol.secagg.appgrid import RUN_ID
from tests.protocol.secagg.kit import Round


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    old = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    assume_identity(run_id=RUN_ID)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = old


@pytest.fixture
def group() -> Round:
    return Round(5, 3)
