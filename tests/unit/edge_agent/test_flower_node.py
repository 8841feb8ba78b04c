"""Whose identity a node of Flower's own engines signs with, and that without one it does nothing."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from edge_agent.flower_node import VARIABLE, identity_folder, read_identity, secure_mod_of_node
from edge_agent.secure_mod import ModPolicy
from shared.clock import SystemClock
from shared.errors import Corrupt, InputError
from shared.flower import REFUSED, new_message, reply_with
from shared.signing.identity import DeviceIdentity
from simulations.flower_engine import make_identities

Settings = Mapping[str, bool | float | int | str]


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    make_identities(tmp_path, ["0", "1"], SystemClock().now())
    return tmp_path


def context(node_config: Settings, run_config: Settings | None = None) -> Context:
    return Context(1, 1, dict(node_config), RecordDict(), dict(run_config or {}))


def test_a_supernode_names_its_folder_and_a_virtual_client_has_one_by_its_partition(tmp_path: Path) -> None:
    everybody = {VARIABLE: str(tmp_path)}
    assert identity_folder(context({"partition-id": 3}), everybody) == tmp_path / "3"
    assert identity_folder(context({"identity": "/own", "partition-id": 3}), everybody) == Path("/own")


@pytest.mark.parametrize("environment", [{}, {VARIABLE: "/all"}], ids=["nothing", "a folder but no partition"])
def test_what_the_server_sends_does_not_choose_an_identity(environment: dict[str, str]) -> None:
    sent: Settings = {"identity": "/chosen/by/the/server", "partition-id": "0"}
    with pytest.raises(InputError, match="--node-config"):
        identity_folder(context({}, sent), environment)


def test_each_signs_for_itself_and_believes_the_others(identities: Path) -> None:
    (one, verifier), (other, _) = (read_identity(identities / name) for name in ("0", "1"))
    assert verifier.verify(other.certificate, other.sign(b"data"), b"data") == other.device == "device-1"
    assert one.device == "device-0"


def test_a_folder_of_another_authority_is_no_identity(identities: Path, tmp_path: Path) -> None:
    make_identities(tmp_path / "others", ["0"], SystemClock().now())
    (identities / "0" / "authority.der").write_bytes((tmp_path / "others" / "authority.der").read_bytes())
    with pytest.raises(Corrupt):
        read_identity(identities / "0")


UNUSABLE: dict[str, Settings] = {
    "no setting": {},
    "a folder that is not there": {"identity": "/nowhere"},
}


@pytest.mark.parametrize("node_config", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_a_node_with(node_config: Settings, kind: str) -> None:
    """… refuses whatever it is asked, even where plain work is allowed, and its app is not reached."""
    reached: list[Message] = []

    def handle(message: Message, context: Context) -> Message:
        reached.append(message)
        return reply_with(message, RecordDict())

    app = ClientApp(mods=[secure_mod_of_node(ModPolicy(allow_plain=True), environment={})])
    for register in (app.train, app.evaluate, app.query):
        register()(handle)
    reply = app(new_message(RecordDict(), run_id=1, node_id=1, message_type=kind), context(node_config))
    assert reply.has_error()
    assert reply.error.code == REFUSED
    assert reached == []


def test_the_authoritys_key_is_kept_nowhere(identities: Path) -> None:
    """Nobody can join a simulation's devices later; the keys that are there are the devices' own, and for their user alone."""
    keys = list(identities.rglob("*.pem"))
    assert len({path.resolve() for path in keys}) == 2
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert "PRIVATE" not in repr(
        DeviceIdentity.load(identities / "0" / "current", (identities / "authority.der").read_bytes())
    )
