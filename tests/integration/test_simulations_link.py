"""The bad link, between a real client and a real server on loopback."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from simulations.link import CALM, Link, Weather


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, int]]:
    """A server that returns what it gets, and ends when its client does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            await _hang_up(writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]


async def _dial(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = link.address.split(":")
    return await asyncio.open_connection(host, int(port))


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_calm_link_passes_every_byte_both_ways(echo: tuple[str, int]) -> None:
    sent = np.random.default_rng(0).bytes(1 << 20)
    async with Link(echo, np.random.default_rng(0)) as link:
        reader, writer = await _dial(link)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent
        await _hang_up(writer)


async def test_a_delay_is_paid_once_a_way_and_not_once_a_piece(echo: tuple[str, int]) -> None:
    async with Link(echo, np.random.default_rng(0), Weather(delay_s=0.2)) as link:
        reader, writer = await _dial(link)
        start = time.monotonic()
        writer.write(b"x" * (1 << 20))
        await reader.readexactly(1 << 20)
        assert 0.4 <= time.monotonic() - start < 2.0
        await _hang_up(writer)


async def test_jitter_never_changes_the_order(echo: tuple[str, int]) -> None:
    async with Link(echo, np.random.default_rng(0), Weather(jitter_s=0.02)) as link:
        reader, writer = await _dial(link)
        sent = b"".join(bytes([number]) * 100 for number in range(50))
        for number in range(50):
            writer.write(bytes([number]) * 100)
            await writer.drain()
        assert await reader.readexactly(len(sent)) == sent
        await _hang_up(writer)


async def test_a_throttled_link_keeps_to_its_rate(echo: tuple[str, int]) -> None:
    async with Link(echo, np.random.default_rng(0), Weather(bytes_per_s=400_000)) as link:
        reader, writer = await _dial(link)
        start = time.monotonic()
        writer.write(b"x" * 200_000)
        await reader.readexactly(200_000)
        assert time.monotonic() - start >= 0.5
        await _hang_up(writer)


async def test_a_partition_starves_an_open_connection_and_its_end_delivers_what_was_held(echo: tuple[str, int]) -> None:
    async with Link(echo, np.random.default_rng(0)) as link:
        reader, writer = await _dial(link)
        link.change(Weather(partitioned=True))
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(5), 0.3)
        link.change(CALM)
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        await _hang_up(writer)


async def test_a_cut_ends_open_connections_and_new_ones_work(echo: tuple[str, int]) -> None:
    async with Link(echo, np.random.default_rng(0)) as link:
        reader, writer = await _dial(link)
        writer.write(b"a")
        await reader.readexactly(1)
        link.cut()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await _hang_up(writer)
        reader, writer = await _dial(link)
        writer.write(b"b")
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"b"
        await _hang_up(writer)


def test_impossible_weather_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        Weather(delay_s=-1)
