"""relay/accepting.py: who connects waits for a descriptor, and nothing spins or is closed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from relay import accepting
from relay.accepting import Listener, serve

PATIENCE = 10.0


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writable = cast(asyncio.Transport, transport)
        writable.write(b"hello")
        writable.close()


class Exhausted(socket.socket):
    """A listening socket that says ``failures`` in turn before it accepts."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise OSError(self.failures.pop(0), "out of something")
        return super().accept()


@pytest.fixture
async def exhausted() -> AsyncIterator[Exhausted]:
    with Exhausted(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def backlog(listener: Listener) -> int:
    about = listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (found,) = struct.unpack_from("I", about, 28)  # tcpi_sacked: of a listening socket its backlog (tcp_get_info)
    return int(found)


async def greeting(port: int) -> bytes:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = await reader.read()
        writer.close()
        return said


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_a_descriptor_who_connects_waits_and_the_log_says_so_once_a_pause(
    number: int, exhausted: Exhausted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.01)
    exhausted.failures = [number] * 3
    listener = Listener(Greeter, exhausted, None)
    with capture_logs() as entries:
        assert await greeting(exhausted.getsockname()[1]) == b"hello"
    assert [entry["event"] for entry in entries] == ["out of system resource, connections wait"] * 3
    listener.close()


async def test_a_client_that_is_gone_again_stops_nobody(exhausted: Exhausted) -> None:
    exhausted.failures = [errno.ECONNABORTED, errno.EINTR, errno.EAGAIN]
    listener = Listener(Greeter, exhausted, None)
    with capture_logs() as entries:
        assert await greeting(exhausted.getsockname()[1]) == b"hello"
    assert entries == []
    listener.close()


async def test_closed_in_a_pause_it_does_not_begin_again(exhausted: Exhausted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "PAUSE", PATIENCE)
    exhausted.failures = [errno.EMFILE] * 100
    listener = Listener(Greeter, exhausted, None)
    asking = asyncio.create_task(greeting(exhausted.getsockname()[1]))
    async with asyncio.timeout(PATIENCE):
        while len(exhausted.failures) == 100:
            await asyncio.sleep(0)
    listener.close()
    listener.close()
    with pytest.raises(ConnectionResetError):  # the kernel's answer for a listener that is gone
        await asking
    assert listener._again is not None
    assert listener._again.cancelled()


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_INFO")
async def test_of_a_socket_that_listens_already_as_many_connections_may_wait_as_before() -> None:
    (listener,) = await serve(Greeter, [socket.create_server(("127.0.0.1", 0), backlog=7)])
    assert backlog(listener) == 7
    assert await greeting(listener.socket.getsockname()[1]) == b"hello"
    listener.close()


async def test_who_comes_at_once_is_accepted_at_once_as_far_as_others_can_wait() -> None:
    (listener,) = await serve(Greeter, [("127.0.0.1", 0)])
    with contextlib.ExitStack() as clients:
        for _ in range(accepting.A_TURN + 1):
            clients.enter_context(socket.create_connection(listener.socket.getsockname(), PATIENCE))
        accepted = []
        async with asyncio.timeout(PATIENCE):
            while sum(accepted) <= accepting.A_TURN:
                known = set(listener._adopting)
                await asyncio.sleep(0)
                accepted.append(len(listener._adopting - known))
        assert max(accepted) == accepting.A_TURN
        await listener.handed_over()
    listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_INFO")
async def test_as_many_connections_may_wait_as_the_system_lets() -> None:
    (listener,) = await serve(Greeter, [("127.0.0.1", 0)])
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert backlog(listener) == min(accepting.BACKLOG, most)
    listener.close()


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_of_a_name_those_addresses_count_that_the_host_has(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
        v6, v4 = (socket.AF_INET6, ("::1", port)), (socket.AF_INET, ("127.0.0.1", port))
        return [v6, v4] if host == "localhost" else [v6]

    create_server = socket.create_server

    def without_ipv6(address: tuple[str, int], *, family: int, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, "not here")
        return create_server(address, family=family, backlog=backlog)

    monkeypatch.setattr(accepting, "_addresses", addresses)
    monkeypatch.setattr(socket, "create_server", without_ipv6)
    (listener,) = await serve(Greeter, [("localhost", 0)])
    assert listener.socket.getsockname()[0] == "127.0.0.1"
    listener.close()
    with pytest.raises(OSError, match="not here"):
        await serve(Greeter, [("::1", 0)])
    with capture_logs() as entries:
        if number == errno.EAFNOSUPPORT:  # a host without IPv6 and the documented way to listen on both
            (listener,) = await serve(Greeter, [("localhost", 0), ("::1", 0)])
            listener.close()
            assert [entry["event"] for entry in entries] == ["not listened on"]
        else:  # an address that the host does not have is a mistake
            with pytest.raises(OSError, match="not here"):
                await serve(Greeter, [("localhost", 0), ("::1", 0)])


async def test_all_are_listened_on_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    create_server = socket.create_server

    def note(*given: object, **named: object) -> socket.socket:
        made.append(create_server(*given, **named))  # type: ignore[arg-type]
        return made[-1]

    async def addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, ("127.0.0.2", 0)), (socket.AF_INET, (host, port))]

    with create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(socket, "create_server", note)
        monkeypatch.setattr(accepting, "_addresses", addresses)
        with pytest.raises(OSError, match="in use"):
            await serve(Greeter, [("127.0.0.3", 0), taken.getsockname()])
    assert [sock.fileno() for sock in made] == [-1] * 3
    listeners = await serve(Greeter, [("127.0.0.3", 0)])
    assert [listener.socket.getsockname()[0] for listener in listeners] == ["127.0.0.2", "127.0.0.3"]
    for listener in listeners:
        listener.close()


async def test_an_address_that_a_name_has_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))] * 2

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: SimpleNamespace(getaddrinfo=getaddrinfo))
        found = await accepting._addresses("127.0.0.1", 25)
    assert found == [(socket.AF_INET, ("127.0.0.1", 25))]
