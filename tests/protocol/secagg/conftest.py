"""What every test of this folder has: a process identity for Flower, and groups at the ready."""

from collections.abc import Iterator

import pytest
from flwr.supercore.task_identity import TaskIdentity

from shared.flower import assume_identity
from shared.secagg.graph import Rates
from tests.protocol.secagg.appgrid import RUN_ID
from tests.protocol.secagg.kit import SPARSE, Fleet


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    old = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    assume_identity(run_id=RUN_ID)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = old


@pytest.fixture
def five() -> Fleet:
    """Five devices before they made a group. Its graph will be complete, threshold and majority 3, and one may drop out."""
    return Fleet(5)


@pytest.fixture
def group() -> Fleet:
    """Five devices in a group."""
    return Fleet(5).make()


@pytest.fixture
def sparse() -> Fleet:
    """Thirty devices before they made a group whose graph they will toss for. One may drop out."""
    return Fleet(30, SPARSE)


@pytest.fixture(scope="session")
def _large() -> Fleet:
    return Fleet(120, Rates(0.25, 0.02), rounds=1).make()


@pytest.fixture
def large(_large: Fleet) -> Iterator[Fleet]:
    """120 in a group before its first round. Each has 30 neighbours or so, and there are 54 witnesses; thirty may drop out."""
    clients = dict(_large.clients)
    yield _large
    _large.clients = clients
