"""One attempt at one recipient: every stage with every kind of answer, and the content byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.model import Outcome, OutcomeKind
from relay.core.nexthop import NextHop
from relay.dns import Resolver
from relay.smtp_out import Content, Sender, Timeouts
from tests.smtp_sink import Close, Hang, Script, Slow, SmtpSink, Stall, Step

BODY = b"From: a@ext.test\r\nSubject: hi\r\n\r\nhello\r\n"
PLAIN = ["SIZE 1000000", "8BITMIME"]
DELIVERED, TEMPORARY = OutcomeKind.DELIVERED, OutcomeKind.TEMPORARY
PERMANENT, AMBIGUOUS = OutcomeKind.PERMANENT, OutcomeKind.AMBIGUOUS


@asynccontextmanager
async def sending(**options: Any) -> AsyncIterator[Sender]:
    # The system's authorities take 30 ms to load, and nothing here verifies a certificate.
    options.setdefault("verified", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    sender = Sender("mx.track.test", Resolver(["127.0.0.1:9"]), **options)
    try:
        yield sender
    finally:
        await sender.close()


def hop(sink: SmtpSink) -> NextHop:
    return NextHop(sink.host, sink.port, "opportunistic")


async def send(
    sender: Sender,
    sink: SmtpSink,
    content: Content | None = None,
    on_final_dot: Callable[[], Awaitable[None]] | None = None,
    *,
    recipient: str = "sales@example.com",
) -> Outcome:
    content = content or Content(b"X-Visit-Id: 1\r\n", len(BODY), BODY)
    return await sender.send(hop(sink), "example.com", "SRS0=x@track.test", recipient, content, on_final_dot)


@pytest.mark.parametrize("extensions", [["PIPELINING", *PLAIN], PLAIN, []], ids=["pipelined", "stepwise", "bare"])
async def test_a_message_arrives_as_it_is_with_our_fields_before_it(extensions: list[str]) -> None:
    async with SmtpSink(extensions=extensions) as sink, sending() as sender:
        outcome = await send(sender, sink)
    assert outcome == Outcome(DELIVERED, 250, "end of data: 250 2.0.0 queued as 1", f"[127.0.0.1]:{sink.port}")
    (message,) = sink.accepted
    assert (message.mail_from, message.recipients) == ("SRS0=x@track.test", ["sales@example.com"])
    assert message.wire == b"X-Visit-Id: 1\r\n" + BODY
    assert message.mail_parameters == ([f"SIZE={len(message.wire)}", "BODY=8BITMIME"] if extensions else [])
    assert sink.commands[:4] == ["EHLO mx.track.test", sink.commands[1], "RCPT TO:<sales@example.com>", "DATA"]


async def test_the_null_reverse_path_is_sent_empty() -> None:
    async with SmtpSink() as sink, sending() as sender:
        await sender.send(hop(sink), "example.com", "", "a@example.com", Content(b"", len(BODY), BODY))
    assert sink.accepted[0].mail_from == ""


STAGES = {"connect": "greeting", "ehlo": "EHLO", "mail": "MAIL", "rcpt": "RCPT", "data": "DATA", "dot": "end of data"}
TIMEOUTS = {"connect": "greeting", "dot": "final"}
ANSWERS: dict[str, Step] = {
    "4xx": "450 4.3.0 not now",
    "5xx": "554 5.7.1 not you",
    "421": "421 4.3.2 going down",
    "close": Close(),
    "hang": Hang(),
    "garbage": b"nonsense\r\n",
    "endless": b"2" * 5000,
}


def expected(stage: str, answer: str) -> OutcomeKind:
    if stage == "dot":
        return {"4xx": TEMPORARY, "421": TEMPORARY, "5xx": PERMANENT}.get(answer, AMBIGUOUS)
    return PERMANENT if (stage, answer) == ("rcpt", "5xx") else TEMPORARY


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("stage", STAGES)
async def test_every_stage_with_every_bad_answer(stage: str, answer: str, pipelining: bool) -> None:
    timeouts = Timeouts(**{TIMEOUTS.get(stage, stage): 0.2}) if answer == "hang" else Timeouts()
    extensions = ["PIPELINING", *PLAIN] if pipelining else PLAIN
    async with (
        SmtpSink(script={stage: [ANSWERS[answer]]}, extensions=extensions) as sink,
        sending(timeouts=timeouts) as sender,
    ):
        outcome = await send(sender, sink)
        assert outcome.kind is expected(stage, answer)
        assert outcome.text.startswith(f"{STAGES[stage]}: ")
        assert outcome.host == f"[127.0.0.1]:{sink.port}"
        assert sink.accepted == []
        if answer in ("4xx", "5xx", "421"):
            assert outcome.code == int(str(ANSWERS[answer])[:3])
            assert str(ANSWERS[answer]) in outcome.text
        else:
            assert outcome.code is None
        kept = stage in ("rcpt", "data", "dot") and answer in ("4xx", "5xx")
        assert sender.stats()["idle"] == kept
        assert (await send(sender, sink)).kind is DELIVERED
        assert sink.sessions == (1 if kept else 2)


@pytest.mark.parametrize(
    ("stage", "reply", "kind"),
    [
        ("connect", "354 what", TEMPORARY),
        ("ehlo", "354 what", TEMPORARY),
        ("mail", "354 what", TEMPORARY),
        ("rcpt", "354 what", TEMPORARY),
        ("data", "250 what", TEMPORARY),
        ("dot", "354 what", AMBIGUOUS),
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_session(stage: str, reply: str, kind: OutcomeKind) -> None:
    async with SmtpSink(script={stage: [reply]}) as sink, sending() as sender:
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.code) == (kind, int(reply[:3]))
        assert sender.stats()["idle"] == 0


@pytest.mark.parametrize("stage", ["mail", "rcpt", "dot"])
async def test_a_slow_answer_is_waited_for(stage: str) -> None:
    async with SmtpSink(script={stage: [Slow(0.05, "250 at last")]}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED


async def test_nobody_listening_is_temporary() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with sending() as sender:
            outcome = await sender.send(
                NextHop("127.0.0.1", port, "opportunistic"), "x", "", "a@x", Content(b"", 0, b"")
            )
    assert outcome == Outcome(TEMPORARY, None, "connect: Connection refused", f"[127.0.0.1]:{port}")


async def test_a_connection_that_is_not_made_in_time_is_temporary() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        async with sending(timeouts=Timeouts(connect=0.05)) as sender:
            next_hop = NextHop("127.0.0.1", full.getsockname()[1], "opportunistic")
            outcome = await sender.send(next_hop, "x", "", "a@x", Content(b"", 0, b""))
        for client in waiting:
            client.close()
    assert (outcome.kind, outcome.text) == (TEMPORARY, "connect: no answer in 0.05 s")


@pytest.mark.parametrize("code", ["500", "502"])
async def test_helo_is_said_where_ehlo_is_unknown(code: str) -> None:
    async with SmtpSink(script={"ehlo": f"{code} what"}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED
    assert sink.commands[:3] == ["EHLO mx.track.test", "HELO mx.track.test", "MAIL FROM:<SRS0=x@track.test>"]


async def test_refused_helo_is_temporary() -> None:
    async with SmtpSink(script={"ehlo": "500 what", "helo": "550 no"}) as sink, sending() as sender:
        outcome = await send(sender, sink)
    assert (outcome.kind, outcome.text) == (TEMPORARY, "EHLO: 550 no")


@pytest.mark.parametrize("after_dot", [None, "250 fine", "421 bye", Close(), Hang()])
@pytest.mark.parametrize("stage", ["mail", "rcpt"])
async def test_a_go_ahead_after_a_refusal_gets_a_lone_dot_and_changes_nothing(stage: str, after_dot: Step) -> None:
    script: dict[str, Script] = {stage: ["550 5.1.1 no"], "data": ["354 go ahead"], "dot": [after_dot]}
    patience = 0.2 if after_dot == Hang() else 20.0
    async with SmtpSink(script=script) as sink, sending(timeouts=Timeouts(reset=patience)) as sender:
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.code) == (PERMANENT if stage == "rcpt" else TEMPORARY, 550)
        assert sink.messages == []
        survives = stage == "rcpt" and (after_dot is None or (isinstance(after_dot, str) and after_dot[0] == "2"))
        assert sender.stats()["idle"] == survives
        assert (await send(sender, sink)).kind is DELIVERED


@pytest.mark.parametrize("rset", ["250 ok", "421 bye", "500 what", Close(), Hang()])
async def test_a_session_whose_rset_fails_is_not_used_again(rset: Step) -> None:
    script: dict[str, Script] = {"rcpt": ["450 4.2.1 later"], "rset": [rset]}
    patience = 0.2 if rset == Hang() else 20.0
    async with SmtpSink(script=script) as sink, sending(timeouts=Timeouts(reset=patience)) as sender:
        assert (await send(sender, sink)).code == 450
        assert (await send(sender, sink)).kind is DELIVERED
        assert sink.sessions == (1 if rset == "250 ok" else 2)


async def test_a_lost_connection_after_the_refusal_keeps_the_refusal() -> None:
    async with SmtpSink(script={"rcpt": "550 5.1.1 no such user", "data": Close()}) as sink, sending() as sender:
        outcome = await send(sender, sink)
    assert (outcome.kind, outcome.text) == (PERMANENT, "RCPT: 550 5.1.1 no such user")


async def test_a_421_to_pipelined_data_after_a_refusal_ends_the_session() -> None:
    async with SmtpSink(script={"rcpt": ["450 later"], "data": ["421 bye"]}) as sink, sending() as sender:
        assert (await send(sender, sink)).code == 450
        assert sender.stats()["idle"] == 0


@pytest.mark.parametrize(("answer", "kind"), [(Close(), AMBIGUOUS), (Close("250 ok"), DELIVERED)])
async def test_a_connection_lost_after_the_dot(answer: Close, kind: OutcomeKind) -> None:
    async with SmtpSink(script={"dot": answer}) as sink, sending() as sender:
        outcome = await send(sender, sink)
        assert outcome.kind is kind
        assert len(sink.messages) == 1
        if kind is AMBIGUOUS:
            assert outcome.text == "end of data: the next hop closed the connection"


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


async def test_an_answer_too_many_before_the_content_stops_the_attempt() -> None:
    async with SmtpSink(script={"data": ["354 go ahead\r\n250 2.0.0 queued"]}) as sink, sending() as sender:
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.text) == (TEMPORARY, "DATA: the next hop sent a reply that nothing asked for")
        assert (await send(sender, sink)).kind is DELIVERED
        assert len(sink.accepted) == 1


async def test_an_answer_too_many_after_the_dot_is_not_read_as_that_to_the_next_message() -> None:
    async with SmtpSink(script={"dot": ["250 ok\r\n250 surplus", "550 no"]}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED
        assert (await send(sender, sink)).kind is PERMANENT
        assert sink.sessions == 2


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


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_caller_hears_before_the_dot_leaves(streamed: bool) -> None:
    heard = 0

    async def on_final_dot() -> None:
        nonlocal heard
        heard += 1
        await asyncio.sleep(0.02)  # time in which a dot that left too early would arrive
        assert sink.messages == []

    async def chunks() -> AsyncIterator[bytes]:
        yield BODY

    async with SmtpSink() as sink, sending() as sender:
        content = Content(b"", len(BODY), chunks if streamed else BODY)
        assert (await send(sender, sink, content, on_final_dot)).kind is DELIVERED
        assert heard == 1
        sink.script["rcpt"] = "550 no"
        await send(sender, sink, content, on_final_dot)
        assert heard == 1


async def test_a_caller_that_fails_before_the_dot_stops_the_message() -> None:
    async def on_final_dot() -> None:
        raise RuntimeError("disk full")

    async with SmtpSink() as sink, sending() as sender:
        outcome = await send(sender, sink, None, on_final_dot)
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
async def test_what_happens_while_the_caller_is_told_happens_before_the_dot(
    step: Step, kind: OutcomeKind, text: str
) -> None:
    async def on_final_dot() -> None:
        await sink.wait(lambda sink: sink.live == 0)
        await asyncio.sleep(0.02)  # until our end has seen it too

    async with SmtpSink(script={"content": step}) as sink, sending() as sender:
        outcome = await send(sender, sink, None, on_final_dot)
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


@pytest.mark.parametrize("recipient", ["a@b\r\nRCPT TO:<c@d", "a\0@b", "ж@b", "a@b\udc80"])
async def test_an_envelope_that_is_not_printable_ascii_is_not_sent(recipient: str) -> None:
    async with SmtpSink() as sink, sending() as sender:
        outcome = await send(sender, sink, recipient=recipient)
        assert outcome.kind is TEMPORARY
        assert outcome.text.isprintable()
        assert not any("MAIL" in command or "RCPT" in command for command in sink.commands)


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
