"""Enrolment, blobs and metrics over real TLS sockets: who gets in, what is kept."""

import errno
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import grpc.aio
import pytest
import zstandard

from coordinator.rpc.blobs import fresh_inbox
from coordinator.rpc.inbox import KEPT_S, MAX_BLOBS
from coordinator.rpc.metrics import MAX_BATCHES, MAX_BYTES
from protos.fleet.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
)
from shared.errors import (
    DigestMismatch,
    Forbidden,
    Malformed,
    NotFound,
    Overloaded,
    ShoalError,
    StorageFull,
    Unauthenticated,
)
from shared.ids import DeviceId, digest_of
from shared.rpc_errors import error_from_rpc
from shared.session import MetricBatch
from shared.signing.certificates import Authority, generate_key, key_to_pem, make_csr, to_pem, verify_certificate
from tests.integration.front import DAY_S, Front, Member, running


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with running(tmp_path) as started:
        yield started


def typed(error: grpc.aio.AioRpcError) -> ShoalError:
    return error_from_rpc(error)


async def put(member: Member, data: bytes, *, digest: str = "", size: int = -1, offset: int = 0) -> int:
    async with member.channel() as channel:
        first = blobs_pb2.PutChunk(
            digest=digest or digest_of(data), size=len(data) if size < 0 else size, offset=offset, data=data[offset:]
        )
        answer = await blobs_pb2_grpc.BlobsStub(channel).Put(iter([first]))
    return int(answer.size)


async def stat(member: Member, digest: str) -> blobs_pb2.StatResponse:
    async with member.channel() as channel:
        answer = await blobs_pb2_grpc.BlobsStub(channel).Stat(blobs_pb2.StatRequest(digest=digest))
    assert isinstance(answer, blobs_pb2.StatResponse)
    return answer


async def fetch(member: Member, digest: str, *, offset: int = 0) -> list[blobs_pb2.FetchChunk]:
    async with member.channel() as channel:
        request = blobs_pb2.FetchRequest(digest=digest, offset=offset, accept=[blobs_pb2.ZSTD])
        return [chunk async for chunk in blobs_pb2_grpc.BlobsStub(channel).Fetch(request)]


async def test_a_new_device_learns_the_authority_and_joins(front: Front) -> None:
    key = generate_key()
    request = enrolment_pb2.EnrolRequest(token=front.token(), csr_der=make_csr(key, "dev1"), name="dev1")
    credentials = grpc.ssl_channel_credentials(to_pem(front.authority.certificate_der))
    async with grpc.aio.secure_channel(f"localhost:{front.enrolment_port}", credentials) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        authority = await stub.GetAuthority(enrolment_pb2.GetAuthorityRequest())
        answer = await stub.Enrol(request)

    assert digest_of(authority.ca_certificate_der) == front.authority.fingerprint
    assert answer.state == enrolment_pb2.EnrolResponse.ISSUED
    assert answer.fleet_address == f"localhost:{front.fleet_port}"
    subject = verify_certificate(front.authority.certificate_der, answer.certificate_der, front.clock.now())
    assert subject.id == answer.device_id


async def test_the_enrolment_port_serves_nothing_but_enrolment(front: Front) -> None:
    credentials = grpc.ssl_channel_credentials(to_pem(front.authority.certificate_der))
    async with grpc.aio.secure_channel(f"localhost:{front.enrolment_port}", credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await enrolment_pb2_grpc.EnrolmentStub(channel).Renew(enrolment_pb2.RenewRequest())
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await blobs_pb2_grpc.BlobsStub(channel).Stat(blobs_pb2.StatRequest())

    assert isinstance(typed(refused.value), Forbidden)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_certificate_of_another_authority_does_not_get_a_connection(front: Front) -> None:
    other, key = Authority.create("other", front.clock.now()), generate_key()
    certificate = other.issue(make_csr(key, "x"), "dev-x", "device", now=front.clock.now(), valid_for_s=DAY_S)
    credentials = front.credentials(key_to_pem(key), certificate)
    async with grpc.aio.secure_channel(f"localhost:{front.fleet_port}", credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await blobs_pb2_grpc.BlobsStub(channel).Stat(blobs_pb2.StatRequest(digest="0" * 64), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_does_not_get_in(front: Front) -> None:
    key = generate_key()
    past = front.clock.now() - 10 * DAY_S
    certificate = front.authority.issue(make_csr(key, "x"), "dev-x", "device", now=past, valid_for_s=DAY_S)
    member = Member(
        front.member("dev1").device, front.credentials(key_to_pem(key), certificate), f"localhost:{front.fleet_port}"
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(member, b"data")
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


async def test_a_revoked_device_is_refused_on_its_next_call(front: Front) -> None:
    member = front.member("dev1")
    assert await put(member, b"before") == 6

    front.registry.revoke("dev1", "admin", "stolen")

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(member, b"after!")
    assert isinstance(typed(refused.value), Forbidden)
    assert not front.inbox.has(digest_of(b"after!"))


async def test_a_device_nobody_enrolled_is_refused_although_its_certificate_is_good(front: Front) -> None:
    key = generate_key()
    certificate = front.authority.issue(
        make_csr(key, "x"), "dev-ghost", "device", now=front.clock.now(), valid_for_s=DAY_S
    )
    member = Member(
        front.member("dev1").device, front.credentials(key_to_pem(key), certificate), f"localhost:{front.fleet_port}"
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(member, b"data")
    assert isinstance(typed(refused.value), Unauthenticated)


async def test_a_blob_comes_back_whole_compressed_when_it_pays_and_is_counted(front: Front) -> None:
    member = front.member("dev1")
    dense, sparse = os.urandom(3_000_000), bytes(3_000_000)
    for data in (dense, sparse):
        front.lasting.write(data)
    front.traffic.take(member.device.id)

    chunks = await fetch(member, digest_of(dense))
    assert b"".join(chunk.data for chunk in chunks) == dense
    assert front.traffic.take(member.device.id) == (3_000_000, 0)

    chunks = await fetch(member, digest_of(sparse))
    assert {chunk.encoding for chunk in chunks} == {blobs_pb2.ZSTD}
    assert front.traffic.take(member.device.id)[0] < 3000


async def test_a_fetch_resumes_where_it_stopped(front: Front) -> None:
    member, data = front.member("dev1"), os.urandom(2_500_000)
    front.lasting.write(data)

    chunks = await fetch(member, digest_of(data), offset=1_000_001)

    assert b"".join(chunk.data for chunk in chunks) == data[1_000_001:]


async def test_a_truncated_put_waits_and_is_resumed(front: Front) -> None:
    member, data = front.member("dev1"), os.urandom(2000)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(member, data[:1200], digest=digest_of(data), size=2000)
    assert isinstance(typed(refused.value), Malformed)
    assert (await stat(member, digest_of(data))).size == 1200
    assert not front.inbox.has(digest_of(data))

    assert await put(member, data, offset=1200) == 2000

    assert front.inbox.read(digest_of(data)) == data


async def test_bytes_that_are_not_what_their_digest_says_are_forgotten(front: Front) -> None:
    member, promised = front.member("dev1"), digest_of(b"good")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(member, b"evil", digest=promised)
    assert isinstance(typed(refused.value), DigestMismatch)
    assert not front.inbox.has(promised)
    assert (await stat(member, promised)).size == 0


async def test_two_devices_that_send_the_same_bytes_at_once_do_not_meet(front: Front) -> None:
    one, two, data = front.member("dev1"), front.member("dev2"), os.urandom(1000)
    with pytest.raises(grpc.aio.AioRpcError):
        await put(one, data[:600], digest=digest_of(data), size=1000)

    assert await put(two, data) == 1000
    assert await put(one, data, offset=600) == 1000

    assert front.inbox.read(digest_of(data)) == data


async def test_a_put_that_goes_on_at_the_wrong_byte_is_told_the_right_one(front: Front) -> None:
    member, data = front.member("dev1"), os.urandom(1000)
    with pytest.raises(grpc.aio.AioRpcError, match="stands at byte 0"):
        await put(member, data, offset=500)
    assert (await stat(member, digest_of(data))).size == 0


async def test_a_frame_that_unpacks_to_more_than_a_piece_is_refused(front: Front) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 23))
    chunk = blobs_pb2.PutChunk(digest="0" * 64, size=1 << 23, encoding=blobs_pb2.ZSTD, data=bomb)
    async with front.member("dev1").channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await blobs_pb2_grpc.BlobsStub(channel).Put(iter([chunk]))
    assert isinstance(typed(refused.value), Malformed)


async def test_a_blob_nobody_stored_is_not_found(front: Front) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await fetch(front.member("dev1"), "0" * 64)
    assert isinstance(typed(refused.value), NotFound)


async def test_a_fetch_behind_the_end_is_refused(front: Front) -> None:
    digest = front.lasting.write(b"short")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await fetch(front.member("dev1"), digest, offset=6)
    assert isinstance(typed(refused.value), Malformed)


async def test_one_device_cannot_fill_the_inbox(front: Front) -> None:
    """It may have so much there that nobody has read; then it is told to wait, and others are not."""
    one, other = front.member("dev1"), front.member("dev2")
    for number in range(MAX_BLOBS):
        await put(one, bytes([number]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(one, b"one too many")
    assert isinstance(typed(refused.value), Overloaded)
    assert not front.inbox.has(digest_of(b"one too many"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(one, b"begun", digest="0" * 64, size=1 << 20)
    assert isinstance(typed(refused.value), Overloaded)

    await put(other, b"of another device")
    front.inbox.delete(digest_of(bytes([0])))  # read
    await put(one, b"one too many")


async def test_what_a_device_sent_and_never_told_of_is_swept(front: Front) -> None:
    member = front.member("dev1")
    await put(member, b"its agent died before it said so")
    with pytest.raises(grpc.aio.AioRpcError):
        await put(member, b"cut ", digest=digest_of(b"cut off"), size=7)

    front.seconds = KEPT_S + 1
    await put(front.member("dev2"), b"of another device")

    assert list(front.inbox.digests()) == [digest_of(b"of another device")]
    assert front.inbox.received(digest_of(b"cut off"), sender=member.device.id) == 0


def test_the_inbox_starts_empty(tmp_path: Path) -> None:
    old = fresh_inbox(tmp_path / "inbox")
    digest = old.write(b"of a round that did not commit")
    old.append(digest_of(b"half"), 0, b"ha", sender="dev1")

    fresh = fresh_inbox(tmp_path / "inbox")

    assert not fresh.has(digest)
    assert fresh.received(digest_of(b"half"), sender="dev1") == 0


@pytest.mark.parametrize(
    ("digest", "size"), {"a path as digest": ("../../etc/passwd", 4), "too large": ("0" * 64, 1 << 40)}.values()
)
async def test_impossible_puts_leave_nothing_on_disk(front: Front, digest: str, size: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(front.member("dev1"), b"data", digest=digest, size=size)
    assert isinstance(typed(refused.value), Malformed)
    assert list(front.inbox.digests()) == []


async def test_a_full_disk_is_said_so_and_keeps_what_was_there(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    member = front.member("dev1")
    await put(member, b"first")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(member, b"second")
    monkeypatch.undo()

    assert isinstance(typed(refused.value), StorageFull)
    assert front.inbox.read(digest_of(b"first")) == b"first"


async def test_metric_batches_are_stored_once_and_acknowledged_after(front: Front) -> None:
    member = front.member("dev1")
    batches = [
        metrics_pb2.Batch(sequence=number, samples=[metrics_pb2.Sample(name="loss", number=0.5)]) for number in (1, 2)
    ]
    async with member.channel() as channel:
        stub = metrics_pb2_grpc.MetricsStub(channel)
        answers = [await stub.Report(iter(batches)) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Report(iter([metrics_pb2.Batch(sequence=0)]))

    assert [answer.acknowledged for answer in answers] == [2, 2]
    assert isinstance(typed(refused.value), Malformed)
    assert front.metrics.latest()[member.device.id].sequence == 2


def big_batch(number: int, size: int) -> metrics_pb2.Batch:
    label = "x" * 128
    sample = metrics_pb2.Sample(name="loss", labels={f"{label[:100]}{place}": label for place in range(20)}, number=0.5)
    return metrics_pb2.Batch(sequence=number, samples=[sample] * (size // sample.ByteSize()))


async def test_a_device_cannot_fill_memory_with_one_report_and_what_was_not_read_is_sent_again(front: Front) -> None:
    member, piece, read = front.member("dev1"), MAX_BYTES // 3, []
    add = front.metrics.add

    def counted(device: DeviceId, batches: Sequence[MetricBatch], received_at: float) -> int:
        read.append(len(batches))
        return add(device, batches, received_at)

    front.metrics.add = counted  # type: ignore[method-assign]
    async with member.channel() as channel:
        stub = metrics_pb2_grpc.MetricsStub(channel)
        answer = await stub.Report(iter([big_batch(number, piece) for number in range(1, 9)]))
        assert 1 <= answer.acknowledged <= 3
        rest = [big_batch(answer.acknowledged + 1, piece)]
        assert (await stub.Report(iter(rest))).acknowledged == answer.acknowledged + 1
        small = [metrics_pb2.Batch(sequence=number, spool="b") for number in range(1, MAX_BATCHES + 10)]
        assert (await stub.Report(iter(small))).acknowledged == MAX_BATCHES
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Report(iter([big_batch(9, MAX_BYTES + 10_000)]))
    assert isinstance(typed(refused.value), Malformed)
    assert max(read) == MAX_BATCHES
