"""Attacks that once got through: each test is one of them, against the real parts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from aiohttp import web
from sqlalchemy import select

import webapi.context
import webapi.door
import webapi.problems
from relay import accepting
from relay.clockwatch import ClockWatch
from relay.core.message import scan
from relay.core.wire import stuff
from relay.extract import Extractor
from relay.extraction import Extraction
from relay.store.clock import DISTRUST
from relay.store.engine import StoreUnavailable, Turn
from relay.store.schema import messages
from relay.sweep import Ages, Sweeper
from tests.certificates import Certificate
from tests.daemon import PATIENCE
from tests.parts import DOMAIN, Parts, running_parts
from tests.scenarios.world import LOOK, unique_letter
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink
from tests.store_fixtures import World
from tests.streams import send
from webapi.limits import Rate

YEAR = 365 * 86_400.0
CARD = f"card@{DOMAIN}"


@pytest.fixture
async def next_hop() -> AsyncIterator[SmtpSink]:
    async with SmtpSink() as sink:
        yield sink


@pytest.fixture
async def relay(next_hop: SmtpSink, tmp_path: Path) -> AsyncIterator[Parts]:
    async with running_parts(tmp_path, f"smtp://{next_hop.address}") as parts:
        yield parts


async def clicked(relay: Parts) -> str:
    """The substitute that somebody is shown who came by an advertisement."""
    page = "https://www.example.com/?roistat=google_7"
    _, substitute = await World(relay.store, relay.clock()).shown("help@example.com", "example", page=page)
    return substitute


async def forwarded(relay: Parts, next_hop: SmtpSink, to: str, wire: bytes) -> bytes:
    """What the next hop gets of a message that came so; ``wire`` is without the final dot."""
    assert (await relay.send(to, mail=wire, sender="ann@x.test")).startswith("250 ")
    await relay.until(lambda rows: rows[-1]["state"] == "forwarded")
    return next_hop.messages[-1].content


# A message that continues our header fields


@pytest.mark.parametrize(
    "content",
    [
        b" 99999\r\nSubject: forged\r\n\r\nbody\r\n",
        b"\tX-Visit-Id: 77\r\n\r\nbody\r\n",
        b" forged " + b"x" * 900 + b"\r\n" + b"a line of a body in a file\r\n" * 20_000,
    ],
    ids=["space", "tab", "in a file"],
)
async def test_the_first_line_of_a_message_never_continues_our_last_field(
    content: bytes, relay: Parts, next_hop: SmtpSink
) -> None:
    found = await forwarded(relay, next_hop, await clicked(relay), stuff(content))
    headers = scan(found, "mx.track.example.com")
    block = found[: headers.end]
    assert b"\r\nX-Visit-Source: google_7\r\n" in block
    assert len(headers.loop_tokens) == 1
    assert found[headers.end :] == b"\r\n" + content


async def test_an_mbox_line_with_a_continuation_does_not_reach_into_our_fields(
    relay: Parts, next_hop: SmtpSink
) -> None:
    content = b"From ann\r\n folded\r\nX-Visit-Id: 9\r\n\r\nbody\r\n"
    found = await forwarded(relay, next_hop, await clicked(relay), content)
    assert b"\r\nX-Visit-Source: google_7\r\n\r\n folded\r\n" in found


# Dots that the next hop takes away (RFC 5321 §4.5.2)

FORGED = b".X-Visit-Id: 999\r\n.X-Visit-Source: forged\r\n.Authentication-Results: mx.track.example.com; dkim=pass\r\n"


@pytest.mark.parametrize(
    ("wire", "content", "sender"),
    [
        (
            FORGED + b".From: b@x.test\r\nFrom: a@x.test\r\n\r\n1\r\n",
            b"From: b@x.test\r\nFrom: a@x.test\r\n\r\n1\r\n",
            "b",
        ),
        (b". forged\r\nFrom: a@x.test\r\n\r\n2\r\n", b"\r\n forged\r\nFrom: a@x.test\r\n\r\n2\r\n", "ann"),
        (b"From: a@x.test\r\n.\tb\r\n" + FORGED + b"\r\n3\r\n", b"From: a@x.test\r\n\tb\r\n\r\n3\r\n", "a"),
        (b"From: a@x.test\r\n..\tb\r\n..X: y\r\n4\r\n", b"From: a@x.test\r\n.\tb\r\n.X: y\r\n4\r\n", "a"),
        (
            FORGED + b"From: a@x.test\r\n\r\n5\r\n" + b".a line of a body in a file\r\n" * 20_000,
            b"From: a@x.test\r\n\r\n5\r\n" + b"a line of a body in a file\r\n" * 20_000,
            "a",
        ),
    ],
    ids=["fields", "first line", "folds", "dots that are meant", "in a file"],
)
async def test_a_spare_dot_hides_no_field_from_us(
    wire: bytes, content: bytes, sender: str, relay: Parts, next_hop: SmtpSink
) -> None:
    found = await forwarded(relay, next_hop, CARD, wire)
    ours, _, theirs = found.partition(b"X-Visit-Source: business%20card\r\n")
    assert theirs == content
    assert ours.count(b"X-Visit-") == 1
    assert await relay.store.reader.all(select(messages.c.sender)) == [(f"{sender}@x.test",)]


async def test_a_spare_dot_hides_neither_a_loop_nor_our_own_copy(relay: Parts, next_hop: SmtpSink) -> None:
    copy = await forwarded(relay, next_hop, CARD, stuff(unique_letter()))
    token = copy[copy.index(b"X-Visit-Relay: ") :].partition(b"\r\n")[0]
    dotted = b".Received: from a by b; x\r\n" * 51 + b"\r\nx\r\n"
    assert (await relay.send(CARD, mail=dotted)).startswith("554 5.4.6")
    assert (await relay.send(CARD, mail=b"." + token + b"\r\nSubject: again\r\n\r\nx\r\n")).startswith("250 ")
    states = await relay.store.reader.all(select(messages.c.state).order_by(messages.c.id))
    assert states[1:] == [("looped",)]


# A clock that is set


async def test_mail_that_waits_for_a_wrong_year_is_sent_after_the_clock_was_corrected(tmp_path: Path) -> None:
    async with (
        SmtpSink(script={"connect": ["421 4.3.2 not now"]}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}") as parts,
    ):
        parts.clock.ahead = YEAR
        watch = ClockWatch(parts.store, parts.clock, parts.forwarder.clock_set_back)
        await _mail(parts)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert row["next_at"] > parts.clock()
        parts.clock.ahead = 0.0  # corrected
        with structlog.testing.capture_logs() as logs:
            await watch.look()
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["the clock was set"]
        (row,) = await parts.delivery_rows()
        assert row["next_at"] <= parts.clock() + 75  # a minute and its jitter
        parts.clock.ahead = 200.0
        parts.forwarder.wake()
        await parts.until(lambda rows: rows[0]["state"] == "forwarded")


async def test_leases_made_in_a_wrong_year_end_when_they_would_have_ended(tmp_path: Path) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        parts.clock.ahead = YEAR
        watch = ClockWatch(parts.store, parts.clock, lambda by: None)
        until = parts.clock() + 900
        await parts.store.write(lambda tx: tx.sql("UPDATE routes SET leased_until = ? WHERE kind = 'pool'", (until,)))
        parts.clock.ahead = 0.0
        await watch.look()
        ((earliest, latest),) = await parts.store.write(
            lambda tx: tx.sql("SELECT min(leased_until), max(leased_until) FROM routes WHERE kind = 'pool'")
        )
        assert earliest == latest
        assert 880 < latest - parts.clock() < 920


async def test_a_clock_that_was_set_while_the_store_is_away_is_noticed_again(tmp_path: Path) -> None:
    told: list[float] = []
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        parts.clock.ahead = YEAR
        watch = ClockWatch(parts.store, parts.clock, told.append)
        parts.clock.ahead = 0.0
        write, parts.store.write = parts.store.write, _unavailable  # type: ignore[assignment,method-assign]
        await watch.look()
        assert told == []
        parts.store.write = write  # type: ignore[method-assign]
        await watch.look()
        await watch.look()
        assert [round(by) for by in told] == [YEAR]


async def test_a_leap_ahead_deletes_nothing_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [1000.0]
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        monkeypatch.setattr("relay.sweep.time.monotonic", lambda: passed[0])
        sweeper = Sweeper(parts.store, parts.bodies, Ages(YEAR, YEAR, YEAR, YEAR, YEAR, YEAR), parts.clock)
        assert await sweeper.trusts_clock()
        parts.clock.ahead = 2 * YEAR
        assert not await sweeper.trusts_clock()
        passed[0] += DISTRUST - 1
        parts.clock.ahead += DISTRUST - 1
        assert not await sweeper.trusts_clock()
        passed[0] += 2
        assert await sweeper.trusts_clock()


@pytest.mark.parametrize(("away", "trusted"), [(DISTRUST + 60, False), (DISTRUST - 60, True)])
async def test_a_start_more_than_a_day_after_the_last_run_by_the_clock_deletes_nothing_for_a_day(
    away: float, trusted: bool, tmp_path: Path
) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        await ClockWatch(parts.store, parts.clock, lambda by: None).begin()
        parts.clock.ahead += away
        await ClockWatch(parts.store, parts.clock, lambda by: None).begin()
        sweeper = Sweeper(parts.store, parts.bodies, Ages(YEAR, YEAR, YEAR, YEAR, YEAR, YEAR), parts.clock)
        assert await sweeper.trusts_clock() is trusted
        parts.clock.ahead += DISTRUST - 60
        sweeper = Sweeper(parts.store, parts.bodies, Ages(YEAR, YEAR, YEAR, YEAR, YEAR, YEAR), parts.clock)
        assert await sweeper.trusts_clock() is trusted
        parts.clock.ahead += 60
        assert await sweeper.trusts_clock()


@pytest.mark.parametrize("leaps", [True, False], ids=["it leapt while the daemon ran", "it was ahead at a start"])
async def test_starts_on_the_day_after_delete_nothing_either_unless_the_clock_was_set_back(
    leaps: bool, tmp_path: Path
) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:

        async def trusted() -> bool:
            """Whether a daemon that begins now trusts the clock."""
            await ClockWatch(parts.store, parts.clock, lambda by: None).begin()
            sweeper = Sweeper(parts.store, parts.bodies, Ages(YEAR, YEAR, YEAR, YEAR, YEAR, YEAR), parts.clock)
            return await sweeper.trusts_clock()

        assert await trusted()
        watch = ClockWatch(parts.store, parts.clock, lambda by: None)
        parts.clock.ahead = 2 * YEAR
        if leaps:
            await watch.look()
        for _ in range(3):
            assert not await trusted()
            parts.clock.ahead += DISTRUST / 4
        parts.clock.ahead = 0.0
        assert await trusted()
        parts.clock.ahead = 2 * YEAR + DISTRUST + 1
        assert await trusted() is False  # it is ahead once more


def test_a_rate_refills_after_the_clock_was_set_back() -> None:
    rate = Rate(60)
    for _ in range(60):
        assert rate.take("somebody", YEAR) == 0
    assert rate.take("somebody", YEAR) > 0
    assert 0 < rate.take("somebody", 0.0) <= 1
    assert rate.take("somebody", 1.5) == 0


# A restart with much left to do


async def test_what_a_crash_left_unread_is_read_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.extraction.AT_ONCE", 2)
    monkeypatch.setattr("relay.extraction.BITE", 4)
    monkeypatch.setattr("relay.extraction.POLL", 3600.0)
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        for _ in range(30):
            await _mail(parts)
        workers = Extractor(workers=1)
        reading = Extraction(
            parts.store, parts.bodies, workers, claim=lambda: "test", on_posts=lambda posts: None, clock=parts.clock
        )
        await reading.start()
        waiting = "SELECT count(*) FROM messages WHERE extraction = 'waiting'"
        async with asyncio.timeout(PATIENCE):
            while await parts.store.write(lambda tx: tx.sql(waiting), turn=Turn.IDLE) != [(0,)]:
                await asyncio.sleep(LOOK)
        await reading.close(10)


# Connections that say nothing

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def served(
    most: int,
    app: web.Application | None = None,
    tls: ssl.SSLContext | None = None,
    where: accepting.Listen = ("127.0.0.1", 0),
    **bounds: Any,
) -> AsyncIterator[int]:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await webapi.context.read_body(request, 1000))

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=bytes(1_000_000))

    async def middling(request: web.Request) -> web.Response:
        return web.Response(body=bytes(50_000))

    app = app if app is not None else web.Application()
    app.router.add_post("/", echo)
    app.router.add_get("/large", large)
    app.router.add_get("/middling", middling)
    runner = web.AppRunner(app)
    await runner.setup()
    (listener,) = await accepting.serve(webapi.door.door(runner, most, **bounds), [where], tls)
    try:
        yield listener.socket.getsockname()[1]
    finally:
        listener.close()
        await runner.cleanup()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends."""
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


async def there_is_room(port: int) -> None:
    """Until a connection is answered; before, it was one too many."""
    answer = b""
    async with asyncio.timeout(PATIENCE):
        while not answer:
            await asyncio.sleep(LOOK)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            with contextlib.suppress(ConnectionResetError):
                answer = await reader.read()
            writer.close()
    assert answer.endswith(b"ok")


async def test_one_connection_too_many_is_closed_and_there_is_room_again_later() -> None:
    async with served(2) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in held:
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
            await writer.drain()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await rest(reader) == b""
        writer.close()
        for _, writer in held:
            writer.close()
        await there_is_room(port)  # the ends of the others are noticed a moment later


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["nothing", "half a hello"])
async def test_a_handshake_that_does_not_end_is_cut_and_holds_nobody_up(
    sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "HANDSHAKE", 1.0)
    certificate = Certificate.make(tmp_path, "127.0.0.1")
    async with served(2, tls=certificate.server_context()) as port, asyncio.timeout(PATIENCE):
        hanging = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for _, writer in hanging:
            writer.write(sent)
        trusted = certificate.client_context()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        writer.write(REQUEST)
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        for reader, writer in hanging:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
    assert caplog.records == []  # it is no failure of ours


async def test_a_body_that_does_not_come_is_answered_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webapi.context, "BODY_TIMEOUT", 0.05)
    async with served(2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Send ``piece`` again and again; ends with the connection."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await send(writer, piece)
            await asyncio.sleep(LOOK)


async def ask_on(client: socket.socket) -> None:
    """Ask for more and more, and read none of it; ends with the connection."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        while True:
            await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")


async def test_one_network_does_not_take_all_connections() -> None:
    async with served(10, each=2) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0))  # same /24
        with contextlib.suppress(ConnectionResetError):
            assert await rest(reader) == b""
        writer.close()
        for _, writer in held:
            writer.close()


async def test_a_proxy_of_ours_is_many_clients(tmp_path: Path) -> None:
    proxied = web.Application()
    proxied[webapi.context.CLIENTS] = webapi.context.Clients((ip_network("127.0.0.0/8"),), ())
    async with served(10, each=2, app=proxied) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        reader, writer = held[-1]
        writer.write(REQUEST)
        assert (await rest(reader)).endswith(b"ok")
        for _, writer in held:
            writer.close()


async def test_who_does_not_read_his_answers_is_cut_off() -> None:
    async with served(2, unread=0.2) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            with pytest.raises(ConnectionError):
                await ask_on(client)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system's TCP waits without end")
async def test_who_does_not_read_a_little_is_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the transport holds is less than what it tells of; when it is closed, it waits for it to be read."""
    monkeypatch.setattr(webapi.door, "IDLE_TIMEOUT", 0.05)
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    small.bind(("127.0.0.1", 0))
    async with served(1, where=small, unread=0.5) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET /middling HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await loop.sock_recv(client, 15) == b"HTTP/1.1 200 OK"
            await there_is_room(port)


@pytest.mark.parametrize("piece", [b"X-Slow: a\r\n", b"a", b"\r\n"])
async def test_a_head_that_comes_in_drops_is_cut_off_all_the_same(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webapi.door, "IDLE_TIMEOUT", 0.2)
    async with served(2) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        if piece != b"\r\n":  # empty lines before a request
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n")
        with pytest.raises(ConnectionError):
            await drip(writer, piece)
        writer.close()


async def test_a_body_that_comes_in_drops_is_answered_408_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webapi.context, "BODY_TIMEOUT", 0.2)
    async with served(2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n")
        answer = asyncio.ensure_future(reader.readline())
        for _ in range(800):
            if answer.done():
                break
            writer.write(b" ")
            await asyncio.sleep(LOOK)
        assert (await asyncio.wait_for(answer, PATIENCE)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_head_that_does_not_come_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webapi.door, "IDLE_TIMEOUT", 0.05)
    async with served(2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        with contextlib.suppress(ConnectionResetError):
            assert await rest(reader) == b""
        writer.close()


def reset(plain: socket.socket) -> None:
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.close()


@pytest.mark.parametrize("end", ["reset", "closed", "garbage in TLS"])
@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n",
    ],
    ids=["half a body", "a body to be asked for"],
)
async def test_who_goes_away_in_his_request_is_no_error(sent: bytes, end: str, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "127.0.0.1")
    app = web.Application(middlewares=[webapi.problems.middleware])
    tls = certificate.server_context() if end == "garbage in TLS" else None

    def come_and_go() -> None:
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        if tls is not None:
            client = certificate.client_context().wrap_socket(client, server_hostname="127.0.0.1")
        client.sendall(sent)
        if tls is not None:
            with socket.socket(fileno=client.detach()) as plain:
                plain.settimeout(PATIENCE)
                plain.sendall(b"what is this?")
                while plain.recv(1024):
                    pass
        elif end == "reset":
            reset(client)
        client.close()

    with structlog.testing.capture_logs() as entries:
        async with served(2, app, tls) as port:
            for _ in range(5):
                with contextlib.suppress(ConnectionResetError):
                    await asyncio.to_thread(come_and_go)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=None if tls is None else certificate.client_context()
            )
            writer.write(REQUEST)
            assert (await rest(reader)).endswith(b"ok")
            writer.close()
    assert [entry for entry in entries if entry["log_level"] == "error"] == []


# A next hop that never stops talking


@pytest.mark.parametrize("stage", ["connect", "mail", "data", "content"])
async def test_a_flood_of_replies_ends_the_session_and_the_mail_waits(stage: str, tmp_path: Path) -> None:
    flood = "\r\n".join(["220 more"] * 5000)
    async with (
        SmtpSink(script={stage: flood}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}") as parts,
    ):
        await _mail(parts)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert row["possibly_repeated"] == 0


async def _mail(parts: Parts) -> None:
    async with await SmtpClient.hello(parts.port) as client:
        answer = await client.mail(unique_letter() + b".\r\n", "<card@track.example.com>", sender="<a@example.org>")
        assert answer.code == 250


async def _unavailable(verb: object, *, turn: Turn = Turn.NEXT) -> None:
    raise StoreUnavailable("gone")
