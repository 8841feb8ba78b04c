"""What a round leaves behind: nothing secret, anywhere."""

from typing import Any

import numpy as np
import pytest

from shared.errors import Malformed
from shared.secagg.client import Client, Policy
from shared.secagg.states import ClientState
from tests.protocol.secagg.kit import Round


def everything_about(client: Client) -> str:
    return f"{client!r} {client} {client.terms!r} {client.roster!r} {client.held!r} {client.secrets!r}"


def test_no_secret_shows_in_the_repr_of_any_state(group: Round) -> None:
    roster = group.keys()
    secrets = group.clients[1].secrets
    assert secrets is not None
    hidden = [secrets.seed, secrets.share_key.private, secrets.mask_key.private]
    states = [group.clients[1]]
    inboxes = group.shares(roster)
    states.append(group.clients[1])
    requests = group.masked(inboxes)
    states.append(group.clients[1])
    hidden += [share for held in group.clients[1].held.values() for share in (held.key_share, held.seed_share)]
    reveal = group.reveal(1, requests[1])
    for secret in hidden:
        for text in (*map(everything_about, states), repr(reveal), *(repr(state.to_fields()) for state in states)):
            assert secret.reveal().hex() not in text
            assert repr(secret.reveal())[2:-1] not in text


def test_private_keys_and_seed_are_gone_once_a_vector_is_masked(group: Round) -> None:
    group.masked(group.shares(group.keys()))
    assert group.clients[1].secrets is None
    assert group.clients[1].to_fields()["secrets"] == []


@pytest.mark.parametrize("way", ["reveal", "abandon"])
def test_no_secret_is_left_when_a_round_is_done(group: Round, way: str) -> None:
    requests = group.masked(group.shares(group.keys()))
    client = group.clients[1]
    done = client.reveal(requests[1])[0] if way == "reveal" else client.abandon()
    assert done.state is ClientState.DONE
    assert (done.secrets, dict(done.held)) == (None, {})
    fields = done.to_fields()
    assert [fields[name] for name in ("secrets", "key_shares", "seed_shares")] == [[], [], []]


def test_a_round_abandoned_before_masking_leaves_nothing(group: Round) -> None:
    group.shares(group.keys())
    done = group.clients[1].abandon()
    assert (done.state, done.secrets, dict(done.held)) == (ClientState.DONE, None, {})


def test_the_server_keeps_no_share_after_the_sum(group: Round) -> None:
    group.unmasked(group.masked(group.shares(group.keys())))
    kept = {name: value for name, value in vars(group.server).items() if name in ("_letters", "_reveals")}
    assert kept == {"_letters": {}, "_reveals": {}}


def test_a_client_comes_back_from_storage_in_every_state(group: Round) -> None:
    def again(client: Client) -> Client:
        restored = Client.from_fields(client.to_fields(), client.policy)
        assert restored == client
        return restored

    roster = group.keys()
    group.clients = {i: again(client) for i, client in group.clients.items()}
    inboxes = group.shares(roster)
    group.clients = {i: again(client) for i, client in group.clients.items()}
    requests = group.masked(inboxes, {1, 2, 4, 5})
    group.clients = {i: again(client) for i, client in group.clients.items()}
    assert (group.unmasked(requests) == group.expected()).all()


@pytest.mark.parametrize(
    "change_", [{"state": "dancing"}, {"secrets": [b"x"]}, {"index": 9}, {"dealers": [1]}], ids=str
)
def test_damaged_stored_state_is_malformed(group: Round, change_: dict[str, Any]) -> None:
    group.keys()
    with pytest.raises(Malformed):
        Client.from_fields({**group.clients[1].to_fields(), **change_}, Policy())


def test_masked_vectors_of_equal_inputs_differ_in_every_round_and_look_uniform() -> None:
    sent = []
    for _ in range(2):
        group = Round(3, 3, length=1 << 16)
        group.vectors = {i: np.zeros(group.length, "<u4") for i in group.vectors}
        inboxes = group.shares(group.keys())
        sent += [group.mask(i, inboxes[i]) for i in (1, 2, 3)]
    for words in sent:
        assert abs(words.astype(np.float64).mean() / 2**32 - 0.5) < 5.5 / np.sqrt(12 * words.size)
    for place, one in enumerate(sent):
        assert all((one == other).mean() < 1e-3 for other in sent[place + 1 :])
