"""The whole coordinator on real sockets, commanded by the real CLI: on the Unix socket, and over mutual TLS as an issued admin."""

import asyncio
import contextlib
import json
import os
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner, Result

from coordinator.app import initialise, running
from coordinator.cli import profile
from coordinator.cli.root import cli
from coordinator.config import CoordinatorConfig, Home
from coordinator.fleet.registry import EnrolmentRequest
from coordinator.rpc.admin import Nouns
from protos.fleet.v1 import admin_pb2, admin_pb2_grpc
from shared.clock import SystemClock
from shared.errors import Conflict, Forbidden, InputError, ShoalError, Unauthenticated
from shared.rpc_errors import error_from_rpc
from shared.signing.certificates import (
    Authority,
    generate_key,
    key_to_pem,
    load_key,
    make_csr,
    public_key_of,
    save_key,
    to_pem,
)
from shared.signing.tokens import JoinToken
from shared.signing.trust import Trust

ANY_PORT = CoordinatorConfig(enrolment_port=0, fleet_port=0, metrics_port=0, log_level="error")


class Place:
    """A coordinator that runs, and whoever types commands at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home(folder / "home")
        self.nouns: Nouns

    async def run(self, *words: object) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli, [str(word) for word in words])

    async def local(self, *words: object) -> Result:
        return await self.run(*words, "--home", self.home.path)

    async def issue(self, name: str = "ann", *more: object) -> Path:
        """Their profile's folder."""
        out = self.folder / name
        done = await self.local("admin", "issue", name, "--out", out, *more)
        assert done.exit_code == 0, done.output
        return out

    def join(self, name: str, profile_json: str = "{}") -> tuple[bytes, bytes]:
        """A device's key, PEM, and certificate."""
        registry, key = self.nouns.registry, generate_key()
        tokens, _ = registry.create_tokens(count=1, valid_for_s=60, labels={}, require_approval=False, actor="test")
        device = registry.enrol(EnrolmentRequest(tokens[0].text, make_csr(key, name), name, {}, profile_json))
        return key_to_pem(key), device.certificate_der


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    found = Place(tmp_path)
    initialise(found.home, ANY_PORT)
    async with running(found.home, ANY_PORT) as parts:
        found.nouns = parts.nouns
        yield found


def failure(done: Result) -> ShoalError:
    assert isinstance(done.exception, ShoalError), done.output
    return done.exception


async def test_an_issued_admin_lists_and_commands_devices_from_afar_and_the_audit_log_names_them(place: Place) -> None:
    place.join("dev1")
    ann = await place.issue()

    listed = await place.run("device", "list", "--json", "--profile", ann)
    moved = await place.run("device", "quarantine", "dev1", "--reason", "odd", "--profile", ann)
    watched = await place.run("audit", "--json", "--profile", ann)

    assert [device["name"] for device in json.loads(listed.output)] == ["dev1"]
    assert moved.exit_code == 0, moved.output
    said = [(entry["actor"], entry["action"], entry["subject"]) for entry in json.loads(watched.output)]
    assert ("local", "admin.issue", "ann") in said
    assert [(who, did) for who, did, _ in said][-1] == ("admin ann", "device.quarantine")


async def test_the_key_of_an_admin_is_made_by_the_command_and_readable_by_its_owner_alone(place: Place) -> None:
    ann = await place.issue()

    key = load_key(ann / profile.KEY)
    assert stat.S_IMODE((ann / profile.KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(ann.stat().st_mode) == 0o700
    found = profile.load(ann)
    assert public_key_of(_der(found.certificate)).public_numbers() == key.public_key().public_numbers()
    assert "PRIVATE" not in repr(found)
    assert not [path for path in place.home.path.rglob("*.pem") if path.read_bytes() == key_to_pem(key)]


async def test_a_profile_may_be_named_by_the_environment_and_home_on_the_command_line_wins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await place.issue()
    monkeypatch.setenv("SHOAL_PROFILE", str(ann))

    from_afar = await place.run("token", "create")
    here = await place.local("token", "create")
    both = await place.run("device", "list", "--profile", ann, "--home", place.home.path)

    assert (from_afar.exit_code, here.exit_code, both.exit_code) == (0, 0, 2), from_afar.output
    who = [entry.actor for entry in place.nouns.registry.audit(2)]
    assert who == ["admin ann", "local"]


async def test_a_revoked_admin_is_refused_on_the_next_call_and_can_be_issued_anew(place: Place) -> None:
    ann = await place.issue()
    assert (await place.local("admin", "revoke", "ann")).exit_code == 0

    refused = await place.run("device", "list", "--profile", ann)
    listed = json.loads((await place.local("admin", "list", "--json")).output)
    again = await place.local("admin", "issue", "ann", "--out", place.folder / "new")
    late = await place.run("device", "list", "--profile", ann)
    fresh = await place.run("device", "list", "--profile", place.folder / "new")

    assert isinstance(failure(refused), Forbidden)
    assert listed[0]["revoked_at"] > 0
    assert again.exit_code == 0, again.output
    assert isinstance(failure(late), Unauthenticated), "the old key stays refused when the name is used again"
    assert fresh.exit_code == 0, fresh.output


async def test_an_expired_admin_is_refused_by_the_command_and_by_the_coordinator(place: Place) -> None:
    ann = await place.issue()
    key, now = generate_key(), SystemClock().now()
    old = Authority.load(place.home.keys).issue(make_csr(key, "bob"), "bob", "admin", now=now - 1000, valid_for_s=10)
    place.nouns.registry.admins.issue("bob", make_csr(key, "bob"), 10, "test")
    said = replace(profile.load(ann), key=key_to_pem(key), certificate=to_pem(old))

    async with _stub(said) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListDevices(admin_pb2.ListDevicesRequest(), timeout=10)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)

    text = (ann / profile.FILE).read_text()
    (ann / profile.FILE).write_text(text.replace("expires_at = ", "expires_at = 1.0 # "))
    told = failure(await place.run("device", "list", "--profile", ann))
    assert isinstance(told, Unauthenticated)
    assert "has expired" in str(told)


@pytest.mark.parametrize("role", ["a device", "an admin nobody issued", "a stranger under an admin's name"])
async def test_whoever_is_not_an_issued_admin_is_refused(place: Place, role: str) -> None:
    ann = await place.issue()
    known = profile.load(ann)
    if role == "a device":
        key_pem, certificate = place.join("dev1")
    else:
        key, authority = generate_key(), Authority.load(place.home.keys)
        name = "bob" if role == "an admin nobody issued" else "ann"
        key_pem = key_to_pem(key)
        now = SystemClock().now()
        certificate = authority.issue(make_csr(key, name), name, "admin", now=now, valid_for_s=60)

    async with _stub(replace(known, key=key_pem, certificate=to_pem(certificate))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListDevices(admin_pb2.ListDevicesRequest(), timeout=10)

    expected = Forbidden if role == "a device" else Unauthenticated
    assert type(error_from_rpc(refused.value)) is expected


async def test_an_admin_from_afar_makes_no_other_admins_and_touches_no_keys(place: Place) -> None:
    ann = await place.issue()
    before = len(place.nouns.registry.audit(100))
    async with _stub(profile.load(ann)) as stub:
        calls = (
            stub.IssueAdmin(admin_pb2.IssueAdminRequest(name="eve", csr_der=make_csr(generate_key(), "eve"))),
            stub.RevokeAdmin(admin_pb2.RevokeAdminRequest(name="ann")),
            stub.RotateKeys(admin_pb2.RotateKeysRequest(role="root")),
            stub.PublishModel(admin_pb2.PublishModelRequest(name="m", bundle_path="/etc")),
        )
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert isinstance(error_from_rpc(refused.value), Forbidden)
    assert [one.name for one in place.nouns.registry.admins.admins()] == ["ann"]
    assert len(place.nouns.registry.audit(100)) == before


async def test_a_name_that_counts_is_not_issued_again_and_a_profile_is_not_overwritten(place: Place) -> None:
    ann = await place.issue()
    key = (ann / profile.KEY).read_bytes()

    taken = await place.local("admin", "issue", "ann", "--out", place.folder / "other")
    over = await place.local("admin", "issue", "bob", "--out", ann)

    assert isinstance(failure(taken), Conflict)
    assert isinstance(failure(over), Conflict)
    assert (ann / profile.KEY).read_bytes() == key
    assert not (place.folder / "other" / profile.FILE).exists()
    assert [one.name for one in place.nouns.registry.admins.admins()] == ["ann"]


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
async def test_keys_are_rotated_by_command_and_devices_follow(place: Place, role: str) -> None:
    first = place.nouns.releases.first_root
    trust = Trust(place.folder / "trust", first)
    trust.update(place.nouns.releases.metadata())
    keys = set(place.home.keys.glob("*.pem"))

    done = await place.local("keys", "rotate", role, "--json")

    assert json.loads(done.output) == {"root_version": 2}
    trust.update(place.nouns.releases.metadata())
    assert len(keys - set(place.home.keys.glob("*.pem"))) == 1, "the old key is gone"
    entry = place.nouns.registry.audit(1)[0]
    assert (entry.actor, entry.action, entry.subject) == ("local", "keys.rotate", role)


async def test_a_device_whose_profile_has_a_name_that_no_message_can_hold_does_not_hide_the_others(
    place: Place,
) -> None:
    """A lone surrogate is valid JSON and no UTF-8; ESC is valid UTF-8 and a terminal obeys it."""
    place.join("dev1", r'{"name": "\ud800 [bold]x\u001b[2J"}')
    place.join("dev2")

    shown = await place.local("device", "list")
    devices = json.loads((await place.local("device", "list", "--json")).output)

    assert [device["name"] for device in devices] == ["dev1", "dev2"], shown.output
    assert devices[0]["profile"] == "\ufffd [bold]x\ufffd[2J"
    assert "\x1b" not in shown.output
    assert shown.exit_code == 0


async def test_an_admin_from_afar_lists_and_revokes_join_tokens_and_never_sees_their_secrets(place: Place) -> None:
    ann = await place.issue()
    text = (await place.run("token", "create", "--label", "site=lab", "--profile", ann)).output.splitlines()[0]
    token = JoinToken.parse(text)

    revoked = await place.run("token", "revoke", token.id, "--profile", ann)
    (place.folder / "token").write_text(f"{text}\n")
    again = await place.local("token", "revoke", "--token-file", place.folder / "token")
    typed = failure(await place.local("token", "revoke", text))
    listed = await place.run("token", "list", "--json", "--profile", ann)
    shown = await place.local("token", "list")

    assert (revoked.exit_code, again.exit_code) == (0, 0), revoked.output
    (found,) = json.loads(listed.output)
    assert (found["id"], found["state"], found["created_by"]) == (token.id, "revoked", "admin ann")
    assert isinstance(typed, InputError)
    assert "give its ID, from `coordinator token list`, or --token-file" in str(typed)
    assert text not in str(typed)
    assert found["labels"] == {"site": "lab"}
    for secret in (text, token.secret.hex(), token.secret_sha256):
        assert secret not in listed.output + shown.output
    with pytest.raises(Forbidden, match="revoked"):
        place.nouns.registry.enrol(EnrolmentRequest(text, make_csr(generate_key(), "dev1"), "dev1", {}, "{}"))
    assert [entry.action for entry in place.nouns.registry.audit(2)] == ["token.create", "token.revoke"]


async def test_a_token_that_was_used_names_its_device(place: Place) -> None:
    place.join("dev1")

    (found,) = json.loads((await place.local("token", "list", "--json")).output)
    refused = await place.local("token", "revoke", found["id"])

    assert (found["state"], found["device_name"]) == ("used", "dev1")
    assert found["used_at"] > 0
    assert isinstance(failure(refused), Conflict)
    assert f"device revoke {found['device']}" in str(failure(refused))


async def test_what_was_typed_wrong_is_an_error_of_input_wherever_it_is_found_out(place: Place) -> None:
    (place.folder / "bundle").mkdir()
    before = len(place.nouns.registry.audit(100))
    typed: tuple[tuple[object, ...], ...] = (
        ("model", "publish", place.folder / "bundle", "--name", "digits"),
        ("model", "publish", place.folder / "bundle", "--name", "no name"),
        ("token", "create", "--label", "Site=lab"),
        ("token", "revoke", "shoal1.abc"),
        ("token", "revoke"),
        ("token", "revoke", "6f1d2c3b4a596877", "--token-file", os.devnull),
        ("token", "revoke", "--token-file", os.devnull),
        ("admin", "issue", "no name", "--out", place.folder / "ann"),
    )
    for words in typed:
        error = failure(await place.local(*words))
        assert (type(error), error.exit_code) == (InputError, 2), words
    assert len(place.nouns.registry.audit(100)) == before
    assert not (place.folder / "ann").exists()


async def test_a_damaged_profile_says_what_is_missing(place: Place) -> None:
    ann = await place.issue()
    (ann / profile.AUTHORITY).unlink()
    assert "not whole" in str(failure(await place.run("device", "list", "--profile", ann)))
    save_key(ann / profile.KEY, generate_key())
    assert "admin issue" in str(failure(await place.run("device", "list", "--profile", place.folder / "none")))


@contextlib.asynccontextmanager
async def _stub(found: profile.Credentials) -> AsyncIterator[admin_pb2_grpc.AdminStub]:
    credentials = grpc.ssl_channel_credentials(found.authority, found.key, found.certificate)
    async with grpc.aio.secure_channel(found.profile.fleet_address, credentials) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


def _der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())
