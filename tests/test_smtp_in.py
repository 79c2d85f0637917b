"""Listening and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import socket
import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay import smtp_stream
from relay.bodies import Bodies, BodyWriter
from relay.smtp_in import SmtpServer
from relay.smtp_limits import Settings
from relay.smtp_session import Session
from relay.tls import TlsFiles
from tests.certificates import Certificate
from tests.smtp_client import PATIENCE, SmtpClient
from tests.smtp_harness import Recorder, serving

BODY = b"Subject: hi\r\n\r\nhello\r\n.\r\n"


def server_in(directory: Path) -> tuple[SmtpServer, Recorder]:
    bodies = Bodies(directory)
    recorder = Recorder(bodies)
    return SmtpServer(recorder, bodies, Settings("mx.test")), recorder


async def test_serves_ipv4_and_ipv6_and_a_socket_handed_in(tmp_path: Path) -> None:
    handed = socket.create_server(("127.0.0.1", 0))
    server, recorder = server_in(tmp_path)
    await server.start([("127.0.0.1", 0), ("::1", 0), handed])
    v4, v6, own = server.ports
    assert own == handed.getsockname()[1]
    for host, port in (("127.0.0.1", v4), ("::1", v6), ("127.0.0.1", own)):
        async with await SmtpClient.connect(port, host) as client:
            assert (await client.answer()).code == 220
            await client.command("EHLO c.test")
            assert (await client.mail(BODY)).code == 250
    assert [transaction.client.ip for transaction in recorder.transactions] == ["127.0.0.1", "::1", "127.0.0.1"]
    await server.stop(0)
    assert handed.fileno() == -1
    assert (server.ports, server.sockets) == ([], [])


async def test_an_ipv4_client_of_a_dual_stack_socket_has_its_ipv4_address(tmp_path: Path) -> None:
    dual = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    server, recorder = server_in(tmp_path)
    await server.start([dual])
    async with await SmtpClient.hello(server.ports[0]) as client:
        assert (await client.mail(BODY)).code == 250
    assert recorder.transactions[0].client.ip == "127.0.0.1"
    await server.stop(0)


async def test_when_one_address_is_taken_none_is_listened_on(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    free = socket.create_server(("127.0.0.1", 0))
    server, _ = server_in(tmp_path)
    with taken, pytest.raises(OSError):
        await server.start([free, ("127.0.0.1", taken.getsockname()[1])])
    assert server.ports == []
    assert free.fileno() == -1


async def test_a_server_without_sessions_stops_at_once_and_can_be_stopped_twice(tmp_path: Path) -> None:
    server, _ = server_in(tmp_path)
    await server.start([("127.0.0.1", 0)])
    port = server.ports[0]
    async with asyncio.timeout(30):
        await server.stop(60)
        await server.stop(60)
    with pytest.raises(ConnectionRefusedError):
        await SmtpClient.connect(port)


@pytest.mark.parametrize("before", [[], ["MAIL FROM:<>"], ["MAIL FROM:<>", "RCPT TO:<u1@track.test>"]])
async def test_a_stop_sends_421_to_who_is_not_in_data(before: list[str], tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        for line in before:
            await client.command(line)
        stop = asyncio.create_task(served.server.stop(60))
        assert (await client.answer()).short == "421 4.3.2"
        client.writer.close()
        await stop
        assert served.server.connections == 0


@pytest.mark.parametrize("turns", range(6))
async def test_who_comes_in_just_then_is_stopped_too_or_does_not_come_in(turns: int, tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with socket.create_connection(("127.0.0.1", served.port)):
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await served.server.stop(0)
            for _ in range(6):
                assert served.server.connections == 0
                await asyncio.sleep(0)


async def test_a_message_in_transit_may_end_within_the_grace(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        await client.send(BODY[:10])
        stop = asyncio.create_task(served.server.stop(60))
        await asyncio.sleep(0)  # the stop has begun
        await client.send(BODY[10:] + b"NOOP\r\n")
        assert (await client.answer()).code == 250
        assert (await client.answer()).short == "421 4.3.2"
        client.writer.close()
        await stop
        assert len(served.recorder.transactions) == 1


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS"])
async def test_a_message_that_does_not_end_within_the_grace_is_421_and_leaves_nothing(
    secured: bool, tmp_path: Path
) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with (
        serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        if secured:
            await client.starttls(certificate.client_context())
            await client.command("EHLO c.test")
        assert (await client.start()).code == 354
        await client.send(b"x" * 1_000_000)
        with capture_logs() as entries:
            await served.server.stop(0.02)
        assert (await client.answer()).short == "421 4.3.2"
        assert await client.at_end()
        assert [entry["end"] for entry in entries] == ["daemon stopping"]
        await served.written()
        assert (served.server.connections, served.files(), served.recorder.transactions) == (0, [], [])


@pytest.mark.parametrize("replies", [300, 900, 1500], ids=str)
async def test_who_ends_tls_and_reads_nothing_keeps_no_connection(
    replies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the replies the kernel takes few; the transport holds the rest, up to 64 KiB without a word to us."""
    lost = asyncio.Event()
    original = Session.connection_lost

    def connection_lost(session: Session, error: Exception | None) -> None:
        original(session, error)
        lost.set()

    monkeypatch.setattr(Session, "connection_lost", connection_lost)
    monkeypatch.setattr(smtp_stream, "TLS_SHUTDOWN", 0.2)
    certificate = Certificate.make(tmp_path, "mx.test")
    context = certificate.client_context()
    async with serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served:
        served.server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = await asyncio.to_thread(_deaf, served.port, context)
        with client:
            await asyncio.to_thread(client.sendall, b"NOOP\r\n" * replies)
            (session,) = served.server._service.sessions
            async with asyncio.timeout(PATIENCE):
                while session._commands < replies + 2:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(_end_tls, client)
            await served.empty()
            async with asyncio.timeout(PATIENCE):
                await lost.wait()


def _deaf(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A client behind STARTTLS whose kernel takes little more than what it has read."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    plain.settimeout(PATIENCE)
    plain.connect(("127.0.0.1", port))
    for command in (b"", b"EHLO c.test\r\n", b"STARTTLS\r\n"):
        plain.sendall(command)
        answer = b""
        while not re.search(rb"^\d{3} .*\r\n\Z", answer, re.MULTILINE):
            answer += plain.recv(1024)
    return context.wrap_socket(plain, server_hostname="mx.test")


def _end_tls(client: ssl.SSLSocket) -> None:
    client.setblocking(False)
    with contextlib.suppress(OSError):
        client.unwrap()


async def test_who_is_gone_behind_starttls_leaves_nothing_in_memory(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with (
        serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        plain = client.writer.get_extra_info("socket")
        os.write(plain.fileno(), b"STARTTLS\r\n")  # at once, so that it is read in one turn with the end
        client.reset()
        await served.empty()
        gc.collect()
        assert [one for one in gc.get_objects() if isinstance(one, ssl.SSLObject)] == []


async def test_a_stop_waits_for_no_handshake(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with (
        serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        assert (await client.command("STARTTLS")).code == 220
        async with asyncio.timeout(PATIENCE):
            await served.server.stop(10 * PATIENCE)
        assert await client.at_end()


async def test_a_message_in_chunks_that_does_not_end_within_the_grace_is_421(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        assert (await client.chunk(BODY)).code == 250
        await served.server.stop(0.02)
        assert (await client.answer()).short == "421 4.3.2"
        assert await client.at_end()
        assert (served.server.connections, served.recorder.transactions) == (0, [])


async def test_who_always_has_sent_more_when_a_piece_is_written_is_421_after_the_grace_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(writer: BodyWriter) -> None:
        for _ in range(50):
            await asyncio.sleep(0.001)  # the slowness is what is tested
            if session.waiting():
                break

    monkeypatch.setattr("relay.bodies.INLINE", 0)
    monkeypatch.setattr(BodyWriter, "flush", slow)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        (session,) = served.server._service.sessions
        assert (await client.start()).code == 354
        flood = asyncio.create_task(_flood(client))
        with capture_logs() as entries:
            await served.server.stop(0.05)
        await asyncio.gather(flood, return_exceptions=True)
        assert [entry["end"] for entry in entries] == ["daemon stopping"]


async def _flood(client: SmtpClient) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            await client.send(b"x")
            await asyncio.sleep(0)


async def test_an_acceptance_under_way_runs_to_its_end_after_the_grace_and_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.go.clear()
        assert (await client.start()).code == 354
        await client.send(BODY)
        await served.recorder.entered.wait()
        stop = asyncio.create_task(served.server.stop(0))
        async with asyncio.timeout(PATIENCE):
            while not all(session._dismissed for session in served.server._service.sessions):
                await asyncio.sleep(0)  # until the grace is over
        served.recorder.go.set()
        assert [(await client.answer()).short for _ in range(2)] == ["250 2.0.0", "421 4.3.2"]
        assert await client.at_end()
        await stop
        assert len(served.recorder.transactions) == 1


async def test_a_stop_does_not_wait_for_ever_for_an_acceptance_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.smtp_in.LAST_ACCEPTANCES", 0.02)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.go.clear()
        assert (await client.start()).code == 354
        await client.send(BODY)
        await served.recorder.entered.wait()
        with capture_logs() as entries:
            await served.server.stop(0)
        assert [entry["event"] for entry in entries] == ["SMTP sessions left behind at the stop"]
        served.recorder.go.set()
        await served.empty()
