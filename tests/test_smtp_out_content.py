"""The content byte for byte, and what happens while it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.model import OutcomeKind
from relay.core.nexthop import NextHop
from relay.smtp_out import Content, Timeouts
from relay.smtp_out.connection import BLOCK, Connection, NoReply
from relay.smtp_out.handshake import unverified
from tests.certificates import Certificate
from tests.sending import BODY, MESSAGE, PREFIX, send, sending
from tests.smtp_client import PATIENCE
from tests.smtp_sink import Close, Slow, SmtpSink, Stall, Step

DELIVERED, TEMPORARY = OutcomeKind.DELIVERED, OutcomeKind.TEMPORARY
PERMANENT, AMBIGUOUS = OutcomeKind.PERMANENT, OutcomeKind.AMBIGUOUS


async def test_a_connection_lost_before_the_dot_is_not_ambiguous() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a: b\r\n\r\n"
        await sink.wait(lambda sink: sink.live == 0)
        for _ in range(100_000):  # until the write fails
            yield b"x" * 998 + b"\r\n"
            await asyncio.sleep(0)

    async with SmtpSink(script={"content": Close()}) as sink, sending() as sender:
        outcome = await send(sender, sink, Content(b"", 10, chunks))
    assert (outcome.kind, outcome.code) == (TEMPORARY, None)
    assert outcome.text.startswith("content: ")


@pytest.mark.parametrize(("reply", "kind"), [("552 5.3.4 too big", PERMANENT), ("452 4.3.1 full", TEMPORARY)])
async def test_an_answer_while_content_is_still_sent_ends_the_attempt(reply: str, kind: OutcomeKind) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 998 + b"\r\n"
            await asyncio.sleep(0.001)
        raise AssertionError("nobody stopped us")

    async with SmtpSink(script={"content": Slow(0.05, reply)}) as sink, sending() as sender:
        outcome = await send(sender, sink, Content(b"", 10, chunks))
        assert (outcome.kind, outcome.text) == (kind, f"content: {reply}")
        assert sender.stats()["idle"] == 0


async def test_a_next_hop_that_takes_no_content_times_out_and_holds_up_reading() -> None:
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"x" * 65534 + b"\r\n"

    async with (
        SmtpSink(script={"content": Stall()}, receive_buffer=65536) as sink,
        sending(timeouts=Timeouts(data_block=0.1)) as sender,
    ):
        outcome = await send(sender, sink, Content(b"", 65_536_000, chunks))
    assert (outcome.kind, outcome.text) == (TEMPORARY, "content: no answer in 0.1 s")
    assert taken < 500  # what the system buffers, not all there is


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_next_hop_that_takes_a_block_in_its_time_gets_as_much_again(encrypted: bool, tmp_path: Path) -> None:
    """However much was written at once."""
    loop, connection = asyncio.get_running_loop(), Connection(set())
    ends: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = loop.create_future()
    context = Certificate.make(tmp_path, "sink.test").server_context() if encrypted else None
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)  # else the system takes some megabytes
    async with await asyncio.start_server(lambda *both: ends.set_result(both), sock=listener, ssl=context):
        await loop.create_connection(lambda: connection, *listener.getsockname())
        connection._plain.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
        if encrypted:
            await connection.start_tls(unverified(), "sink.test", PATIENCE)
        reader, writer = await ends
        try:
            for _ in range(2):  # TLS passes the first on and keeps the second back
                connection.write(bytes(100 * BLOCK))
            written, began = connection._unsent(), loop.time()
            waiting = asyncio.create_task(connection.drain(1))
            while connection._unsent() > written - BLOCK:
                await reader.read(BLOCK)
            with pytest.raises(NoReply, match="no answer in 1 s"):
                await waiting
            assert loop.time() - began > 1.9
        finally:
            connection.abort()
            writer.transport.abort()
            await connection.closed
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_eight_bits_and_any_size_are_sent_whatever_is_announced() -> None:
    body = b"Subject: \xff\xfe\r\n\r\n" + b"\xe9" * 5000 + b"\r\n"
    async with SmtpSink(extensions=["SIZE 10"]) as sink, sending() as sender:
        assert (await send(sender, sink, Content(b"", len(body), body))).kind is DELIVERED
    assert sink.accepted[0].wire == body
    assert sink.accepted[0].mail_parameters == [f"SIZE={len(body)}"]


@pytest.mark.parametrize(
    ("prefix", "body", "arrives"),
    [
        (b"", b"a: b\r\n\r\nno end", b"a: b\r\n\r\nno end\r\n"),
        (b"", b"a: b\r\n\r\nbare\n", b"a: b\r\n\r\nbare\n\r\n"),
        (b"X: y\r\n", b"", b"X: y\r\n"),
        (b"", b"", b"\r\n"),
        (b"", b"..stuffed\r\n...\r\n", b"..stuffed\r\n...\r\n"),
        (b"", b"big\r\n" * 60_000, b"big\r\n" * 60_000),
    ],
    ids=["no-crlf", "bare-lf", "prefix-only", "nothing", "dots", "big"],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_content_is_sent_in_wire_form_and_ends_in_crlf(
    prefix: bytes, body: bytes, arrives: bytes, streamed: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b""
        for start in range(0, len(body), 7 if len(body) < 100 else 8191):
            yield body[start : start + (7 if len(body) < 100 else 8191)]

    async with SmtpSink() as sink, sending() as sender:
        outcome = await send(sender, sink, Content(prefix, len(body), chunks if streamed else body))
    assert outcome.kind is DELIVERED
    assert sink.accepted[0].wire == arrives


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"x", b"ab\r\n"]), max_size=6))
def test_the_dot_stands_on_its_own_line_however_the_end_is_cut(pieces: list[bytes]) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def run() -> None:
        async with SmtpSink() as sink, sending() as sender:
            assert (await send(sender, sink, Content(b"X: y\r\n", 0, chunks))).kind is DELIVERED
        whole = b"X: y\r\n" + b"".join(pieces)
        assert sink.accepted[0].wire == (whole if whole.endswith(b"\r\n") else whole + b"\r\n")

    asyncio.run(run())


async def test_content_may_come_from_any_asynchronous_iterator() -> None:
    class Halves:
        def __init__(self) -> None:
            self.left = [BODY[:10], BODY[10:]]

        def __aiter__(self) -> Halves:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    async with SmtpSink() as sink, sending() as sender:
        assert (await send(sender, sink, Content(PREFIX, len(BODY), Halves))).kind is DELIVERED
    assert sink.accepted[0].wire == PREFIX + BODY


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_caller_hears_before_the_dot_leaves(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = 0
    dots: list[int] = []  # how often the caller had heard when one left
    write = Connection.write

    def noted(self: Connection, data: bytes) -> None:
        if data.endswith(b".\r\n"):
            dots.append(heard)
        write(self, data)

    def on_final_dot() -> None:
        nonlocal heard
        heard += 1

    async def chunks() -> AsyncIterator[bytes]:
        yield BODY

    monkeypatch.setattr(Connection, "write", noted)
    async with SmtpSink() as sink, sending() as sender:
        content = Content(b"", len(BODY), chunks if streamed else BODY)
        assert (await send(sender, sink, content, on_final_dot)).kind is DELIVERED
        assert (heard, dots) == (1, [1])
        sink.script["rcpt"] = "550 no"
        await send(sender, sink, content, on_final_dot)
        assert heard == 1


async def test_a_caller_that_fails_before_the_dot_stops_the_message() -> None:
    def on_final_dot() -> None:
        raise RuntimeError("disk full")

    async with SmtpSink() as sink, sending() as sender:
        outcome = await send(sender, sink, MESSAGE, on_final_dot)
        await sink.wait(lambda sink: sink.live == 0)
        assert (outcome.kind, outcome.text) == (TEMPORARY, "content: RuntimeError: disk full")
        assert sink.messages == []


@pytest.mark.parametrize(
    ("step", "kind", "text"),
    [
        (Close(), TEMPORARY, "content: the next hop closed the connection"),
        (Slow(0.05, "554 5.7.1 spam"), PERMANENT, "content: 554 5.7.1 spam"),
        (Slow(0.05, "250 2.0.0 queued"), TEMPORARY, "content: 250 2.0.0 queued"),
    ],
)
async def test_what_happens_before_the_dot_is_known_to_be_before_it(step: Step, kind: OutcomeKind, text: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield BODY
        await sink.wait(lambda sink: sink.live == 0)
        await asyncio.sleep(0.02)  # until our end has seen it too

    def on_final_dot() -> None:
        raise AssertionError("nobody waits for it any more")

    async with SmtpSink(script={"content": step}) as sink, sending() as sender:
        outcome = await send(sender, sink, Content(b"", len(BODY), chunks), on_final_dot)
        assert (outcome.kind, outcome.text) == (kind, text)
        assert sender.stats()["idle"] == 0


async def test_content_that_cannot_be_read_never_gets_its_dot() -> None:
    closed = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"half of it\r\n"
            raise OSError(5, "Input/output error")
        finally:
            closed = True

    async with SmtpSink() as sink, sending() as sender:
        outcome = await send(sender, sink, Content(b"", 100, chunks))
        await sink.wait(lambda sink: sink.live == 0)
        assert (outcome.kind, outcome.text) == (TEMPORARY, "content: OSError: [Errno 5] Input/output error")
        assert sink.messages == []
        assert closed


async def test_ten_megabytes_pass_in_little_memory() -> None:
    chunk = (b"x" * 76 + b"\r\n") * 840
    count, digest = 10_000_000 // len(chunk), hashlib.sha256()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield chunk

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            buffer, last = bytearray(65536), b""
            client.sendall(b"220 hi\r\n")
            for answer in (b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
                client.recv_into(buffer)
                client.sendall(answer)
            while not last.endswith(b"\r\n.\r\n"):
                size = client.recv_into(buffer)
                digest.update(buffer[:size])
                last = last[-5:] + bytes(buffer[max(0, size - 5) : size])
            client.sendall(b"250 ok\r\n")
            client.recv_into(buffer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        next_hop = NextHop("127.0.0.1", listener.getsockname()[1], "opportunistic")
        server = asyncio.create_task(asyncio.to_thread(serve))
        async with sending() as sender:
            tracemalloc.start()
            outcome = await sender.send(next_hop, "x", "", "a@x", Content(b"", count * len(chunk), chunks))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        await server
    assert outcome.kind is DELIVERED
    assert digest.digest() == hashlib.sha256(chunk * count + b".\r\n").digest()
    assert peak < 1_500_000
