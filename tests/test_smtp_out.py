"""One attempt at one recipient: every stage with every kind of answer."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time

import pytest

from relay.core.model import Outcome, OutcomeKind
from relay.core.nexthop import NextHop
from relay.smtp_out import Content, Timeouts, connection
from relay.smtp_out.connection import Connection
from tests.sending import BODY, PREFIX, send, sending
from tests.smtp_sink import Close, Hang, Script, Slow, SmtpSink, Step, Vanish, can_vanish

DELIVERED, TEMPORARY = OutcomeKind.DELIVERED, OutcomeKind.TEMPORARY
PERMANENT, AMBIGUOUS = OutcomeKind.PERMANENT, OutcomeKind.AMBIGUOUS
PLAIN = ["SIZE 1000000", "8BITMIME"]


@pytest.mark.parametrize("extensions", [["PIPELINING", *PLAIN], PLAIN, []], ids=["pipelined", "stepwise", "bare"])
async def test_a_message_arrives_as_it_is_with_our_fields_before_it(extensions: list[str]) -> None:
    async with SmtpSink(extensions=extensions) as sink, sending() as sender:
        outcome = await send(sender, sink)
    assert outcome == Outcome(DELIVERED, 250, "end of data: 250 2.0.0 queued as 1", f"[127.0.0.1]:{sink.port}")
    (message,) = sink.accepted
    assert (message.mail_from, message.recipients) == ("SRS0=x@track.test", ["sales@example.com"])
    assert message.wire == PREFIX + BODY
    assert message.mail_parameters == ([f"SIZE={len(message.wire)}", "BODY=8BITMIME"] if extensions else [])
    assert sink.commands[:4] == ["EHLO mx.track.test", sink.commands[1], "RCPT TO:<sales@example.com>", "DATA"]


async def test_the_null_reverse_path_is_sent_empty() -> None:
    async with SmtpSink() as sink, sending() as sender:
        next_hop = NextHop(sink.host, sink.port, "none")
        await sender.send(next_hop, "example.com", "", "a@example.com", Content(b"", len(BODY), BODY))
    assert sink.accepted[0].mail_from == ""


INTERNATIONAL = ["PIPELINING", "SIZE 1000000", "8BITMIME", "SMTPUTF8"]
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
    assert outcome == Outcome(TEMPORARY, None, "connect: Connection refused", f"[127.0.0.1]:{port}", reached=False)


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


@pytest.mark.parametrize("ends", ["time", "stop"])
async def test_a_connection_that_is_made_just_when_nobody_waits_for_it_is_closed_and_forgotten(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Connection] = []
    seconds = 0.05 if ends == "time" else 30.0
    connection_made = Connection.connection_made

    def late(connection: Connection, transport: asyncio.BaseTransport) -> None:
        connection_made(connection, transport)
        made.append(connection)
        if ends == "stop":
            asyncio.get_running_loop().call_soon(attempt.cancel)
        else:
            time.sleep(0.1)  # the event loop stands still, past the end of the time

    monkeypatch.setattr(Connection, "connection_made", late)
    async with SmtpSink() as sink, sending(timeouts=Timeouts(connect=seconds)) as sender:
        attempt = asyncio.create_task(send(sender, sink))
        await asyncio.wait({attempt})
        assert attempt.cancelled() is (ends == "stop")
        assert attempt.cancelled() or attempt.result().text == "connect: no answer in 0.05 s"
        async with asyncio.timeout(10):
            await made[0].closed
        assert sender.stats()["open"] == 0


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


@pytest.mark.skipif(not can_vanish(), reason="needs TCP_REPAIR (Linux, CAP_NET_ADMIN)")
async def test_a_next_hop_cut_off_from_power_after_the_dot_is_not_waited_for_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.smtp_out.connection.KEEPALIVE_AFTER", 1)
    async with SmtpSink(script={"dot": Vanish()}) as sink, sending(timeouts=Timeouts(final=10.0)) as sender:
        outcome = await send(sender, sink)
    assert (outcome.kind, outcome.text) == (AMBIGUOUS, "end of data: Connection reset by peer")


def test_silence_ends_no_connection_before_its_time_limit() -> None:
    longest = max(dataclasses.asdict(Timeouts()).values())
    assert longest < connection.KEEPALIVE_AFTER + connection.KEEPALIVE_EVERY * connection.KEEPALIVE_UNANSWERED


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


@pytest.mark.parametrize("recipient", ["a@b\r\nRCPT TO:<c@d", "a\0@b", "ж\n@b", "a@b\udc80"])
async def test_an_envelope_that_is_not_printable_is_not_sent(recipient: str) -> None:
    async with SmtpSink(extensions=INTERNATIONAL) as sink, sending() as sender:
        outcome = await send(sender, sink, recipient=recipient)
        assert outcome.kind is TEMPORARY
        assert outcome.text.isprintable()
        assert not any("MAIL" in command or "RCPT" in command for command in sink.commands)


@pytest.mark.parametrize("recipient", ["büro@example.com", "sales@example.com"])
async def test_an_address_beyond_ascii_goes_with_smtputf8_and_others_without(recipient: str) -> None:
    async with SmtpSink(extensions=INTERNATIONAL) as sink, sending() as sender:
        assert (await send(sender, sink, recipient=recipient)).kind is DELIVERED
    (message,) = sink.accepted
    assert message.recipients == [recipient]
    assert ("SMTPUTF8" in message.mail_parameters) is not recipient.isascii()


async def test_an_address_beyond_ascii_is_refused_for_good_where_smtputf8_is_not_announced() -> None:
    async with SmtpSink() as sink, sending() as sender:
        for _ in ("new", "kept"):
            outcome = await send(sender, sink, recipient="büro@example.com")
            assert (outcome.kind, outcome.code, outcome.reached) == (PERMANENT, None, True)
            assert "does not announce SMTPUTF8" in outcome.text
            assert (await send(sender, sink)).kind is DELIVERED
        assert not any("büro" in command for command in sink.commands)


@pytest.mark.parametrize(
    ("reply", "kind"), [("552 5.3.4 Message size exceeds fixed limit", PERMANENT), ("552 5.2.2 full", TEMPORARY)]
)
async def test_a_letter_that_is_too_large_is_refused_for_good_before_it_is_sent(reply: str, kind: OutcomeKind) -> None:
    async with SmtpSink(script={"mail": [reply, reply]}) as sink, sending() as sender:
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.code, outcome.text) == (kind, 552, f"MAIL: {reply}")


@pytest.mark.parametrize(
    ("announced", "kind"),
    [
        ("SIZE 20", PERMANENT),
        ("SIZE 1000", TEMPORARY),
        ("SIZE 0", TEMPORARY),
        ("SIZE", TEMPORARY),
        ("SIZE x", TEMPORARY),
    ],
)
async def test_552_without_an_enhanced_code_is_for_good_where_the_letter_is_larger_than_was_announced(
    announced: str, kind: OutcomeKind
) -> None:
    reply = "552 Message size exceeds maximum permitted"  # as Exim says it
    async with SmtpSink(extensions=[announced], script={"mail": [reply, reply]}) as sink, sending() as sender:
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.code, outcome.text) == (kind, 552, f"MAIL: {reply}")
        size = len(PREFIX + BODY)
        assert any(command.endswith(f" SIZE={size}") for command in sink.commands)
