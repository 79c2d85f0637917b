"""Which hosts are tried, which connections are kept, and how many there are at a time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from relay.core.model import Outcome, OutcomeKind
from relay.core.nexthop import NextHop
from relay.dns import Resolver
from relay.smtp_out import Content, Sender, Timeouts
from relay.smtp_out import sender as sender_module
from tests.dns_server import DnsServer, Fault
from tests.sending import BODY, send, sending
from tests.smtp_sink import Close, Hang, Later, Script, SinkSession, Slow, SmtpSink, Stall, Step

DELIVERED, TEMPORARY, PERMANENT = OutcomeKind.DELIVERED, OutcomeKind.TEMPORARY, OutcomeKind.PERMANENT
many_addresses = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has only 127.0.0.1 on its loopback")


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


# MX


@many_addresses
async def test_the_preferred_mx_gets_the_mail(dns: DnsServer) -> None:
    dns.table |= {
        ("example.com", "MX"): ["20 second.test.", "10 first.test."],
        ("first.test", "A"): ["127.0.0.1"],
        ("second.test", "A"): ["127.0.0.2"],
    }
    async with SmtpSink() as first, SmtpSink(host="127.0.0.2", port=first.port) as second:
        async with sending(dns, mx_port=first.port) as sender:
            outcome = await send(sender, "example.com")
        assert (outcome.kind, outcome.host) == (DELIVERED, f"first.test[127.0.0.1]:{first.port}")
        assert (len(first.accepted), len(second.accepted)) == (1, 0)


BEFORE_RCPT_ANSWERED: list[dict[str, Script]] = [
    {"connect": "421 busy"},
    {"connect": "554 go away"},
    {"connect": Close()},
    {"ehlo": "421 busy"},
    {"mail": "451 later"},
    {"mail": "550 no"},
    {"rcpt": Close()},
    {"rcpt": "421 bye"},
]


@many_addresses
@pytest.mark.parametrize("script", BEFORE_RCPT_ANSWERED)
async def test_the_next_mx_is_tried_while_rcpt_has_no_answer(dns: DnsServer, script: dict[str, Script]) -> None:
    dns.table |= {
        ("example.com", "MX"): ["5 gone.test.", "10 first.test.", "20 second.test."],
        ("first.test", "A"): ["127.0.0.1"],
        ("second.test", "A"): ["127.0.0.2"],
    }
    async with SmtpSink(script=script) as first, SmtpSink(host="127.0.0.2", port=first.port) as second:
        async with sending(dns, mx_port=first.port) as sender:
            outcome = await send(sender, "example.com")
        assert (outcome.kind, outcome.host) == (DELIVERED, f"second.test[127.0.0.2]:{first.port}")
        assert first.sessions == 1
        assert len(second.accepted) == 1


@many_addresses
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ({"rcpt": "450 4.2.0 greylisted"}, TEMPORARY),
        ({"rcpt": "550 5.1.1 no"}, PERMANENT),
        ({"data": "451 later"}, TEMPORARY),
        ({"data": Close()}, TEMPORARY),
        ({"dot": "451 later"}, TEMPORARY),
        ({"dot": Close()}, OutcomeKind.AMBIGUOUS),
    ],
)
async def test_no_other_host_is_asked_once_rcpt_is_answered(
    dns: DnsServer, script: dict[str, Script], kind: OutcomeKind
) -> None:
    dns.table["example.com", "A"] = ["127.0.0.1"]
    dns.table["example.com", "AAAA"] = ["::1"]
    dns.table["example.com", "MX"] = ["10 example.com.", "20 second.test."]
    dns.table["second.test", "A"] = ["127.0.0.2"]
    async with SmtpSink(script=script) as first, SmtpSink(host="127.0.0.2", port=first.port) as second:
        async with sending(dns, mx_port=first.port) as sender:
            assert (await send(sender, "example.com")).kind is kind
        assert (first.sessions, second.sessions) == (1, 0)


@many_addresses
async def test_every_address_of_a_host_is_tried(dns: DnsServer) -> None:
    dns.table["example.com", "A"] = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"]
    async with SmtpSink() as sink, sending(dns, mx_port=sink.port) as sender:
        outcome = await send(sender, "example.com")
        assert (outcome.kind, outcome.host) == (DELIVERED, f"example.com[127.0.0.1]:{sink.port}")


@many_addresses
async def test_no_more_than_eight_addresses_are_tried(dns: DnsServer) -> None:
    dns.table["example.com", "MX"] = [f"{n} mx{n}.test." for n in range(20)]
    for n in range(20):
        dns.table[f"mx{n}.test", "A"] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    async with SmtpSink(script={"connect": "421 busy"}, host="127.0.0.2") as sink:
        async with sending(dns, mx_port=sink.port) as sender:
            outcome = await send(sender, "example.com")
        assert (outcome.kind, outcome.code, outcome.text) == (TEMPORARY, 421, "greeting: 421 busy")
        assert 2 <= sink.sessions <= 3
    assert ("mx2.test", "A", "udp") in dns.queries
    assert ("mx3.test", "A", "udp") not in dns.queries


def test_the_last_try_that_is_left_is_of_ipv4() -> None:
    assert sender_module._some(["192.0.2.1", "2001:db8::1"], 1) == ["192.0.2.1"]


@many_addresses
@pytest.mark.parametrize("living", ["next host", "other family", "other family of the only host"])
async def test_many_dead_addresses_of_a_host_leave_the_others_their_turn(dns: DnsServer, living: str) -> None:
    dns.table["one.test", "A"] = [f"127.0.0.{n}" for n in range(11, 20)]
    dns.table["two.test", "A"] = ["127.0.0.20"]
    dns.table["example.com", "MX"] = ["10 one.test."] if "only" in living else ["10 one.test.", "20 two.test."]
    if living == "next host":
        dns.table["two.test", "A"] = ["127.0.0.1"]
    else:
        dns.table["one.test", "AAAA"] = ["::1"]
    host = "127.0.0.1" if living == "next host" else "::1"
    async with SmtpSink(host=host) as sink, sending(dns, mx_port=sink.port) as sender:
        assert (await send(sender, "example.com")).kind is DELIVERED


async def test_the_failure_that_came_furthest_is_reported(dns: DnsServer) -> None:
    dns.table |= {
        ("example.com", "MX"): ["10 gone.test.", "20 busy.test.", "30 silent.test."],
        ("busy.test", "A"): ["127.0.0.1"],
        ("silent.test", "A"): Fault.SERVFAIL,
    }
    async with SmtpSink(script={"mail": "452 4.3.1 disk full"}) as sink, sending(dns, mx_port=sink.port) as sender:
        outcome = await send(sender, "example.com")
    assert outcome == Outcome(TEMPORARY, 452, "MAIL: 452 4.3.1 disk full", f"busy.test[127.0.0.1]:{sink.port}")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, "DNS: example.com does not exist (NXDOMAIN)"),
        ({("example.com", "MX"): ["0 ."]}, "DNS: example.com takes no mail (null MX, RFC 7505)"),
        ({("example.com", "MX"): Fault.SERVFAIL}, "DNS: MX of example.com: SERVFAIL"),
        ({("example.com", "MX"): Fault.SILENT}, "DNS: MX of example.com: no answer in time"),
        ({("example.com", "MX"): ["10 mx.test."]}, "DNS: mx.test does not exist (NXDOMAIN)"),
        (
            {("example.com", "MX"): ["10 mx.test."], ("mx.test", "A"): Fault.SERVFAIL},
            "DNS: A of mx.test: SERVFAIL",
        ),
        ({("example.com", "TXT"): ['"x"']}, "DNS: example.com has no address"),
        (
            {("example.com", "MX"): ["10 MX.track.test.", "10 twin.test.", "20 mx2.test."]},
            "DNS: the MX of example.com is this host itself: its mail needs a next hop",
        ),
    ],
)
async def test_no_host_is_temporary_and_says_why(dns: DnsServer, table: dict[Any, Any], text: str) -> None:
    dns.table |= table
    async with sending(dns) as sender:
        outcome = await send(sender, "example.com")
    assert (outcome.kind, outcome.code, outcome.text) == (TEMPORARY, None, text)
    assert outcome.host in ("example.com", "mx.test")


async def test_only_hosts_preferred_to_ourselves_are_tried(dns: DnsServer) -> None:
    dns.table |= {
        ("example.com", "MX"): ["5 real.test.", "10 mx.track.test.", "20 backup.test."],
        ("real.test", "A"): ["127.0.0.1"],
    }
    async with SmtpSink(script={"mail": "451 later"}) as sink, sending(dns, mx_port=sink.port) as sender:
        assert (await send(sender, "example.com")).text == "MAIL: 451 later"
    assert not any(name == "backup.test" for name, _, _ in dns.queries)


@many_addresses
@pytest.mark.parametrize(("other", "kind"), [("takes it", DELIVERED), ("is away", TEMPORARY), ("neither", PERMANENT)])
async def test_an_address_beyond_ascii_is_refused_for_good_only_where_no_host_may_take_it(
    dns: DnsServer, other: str, kind: OutcomeKind
) -> None:
    dns.table[("example.com", "MX")] = ["10 one.test.", "20 two.test."]
    dns.table[("one.test", "A")], dns.table[("two.test", "A")] = ["127.0.0.2"], ["127.0.0.3"]
    extensions = ["SMTPUTF8"] if other == "takes it" else []
    async with (
        SmtpSink(host="127.0.0.2") as first,
        SmtpSink(host="127.0.0.3", port=first.port, extensions=extensions) as second,
        sending(dns, mx_port=first.port) as sender,
    ):
        if other == "is away":
            second.script["connect"] = "421 4.3.2 later"
        outcome = await send(sender, "example.com", recipient="büro@example.com")
        assert (outcome.kind, outcome.reached) == (kind, True)


async def test_an_address_literal_needs_no_dns() -> None:
    async with SmtpSink() as sink, sending(mx_port=sink.port) as sender:
        outcome = await send(sender, "[127.0.0.1]", recipient="sales@[127.0.0.1]")
        assert (outcome.kind, outcome.host) == (DELIVERED, f"[127.0.0.1]:{sink.port}")


async def test_a_next_hop_by_name_is_looked_up_without_mx(dns: DnsServer) -> None:
    dns.table |= {("hop.test", "A"): ["127.0.0.1"], ("hop.test", "MX"): ["10 elsewhere.test."]}
    async with SmtpSink() as sink, sending(dns) as sender:
        next_hop = NextHop("hop.test", sink.port, "opportunistic")
        content = Content(b"", len(BODY), BODY)
        outcome = await sender.send(next_hop, "example.com", "", "a@example.com", content)
        assert (outcome.kind, outcome.host) == (DELIVERED, f"hop.test[127.0.0.1]:{sink.port}")


async def test_an_unexpected_exception_is_a_temporary_outcome() -> None:
    class Broken(Resolver):
        async def mx(self, domain: str) -> Any:
            raise KeyError("surprise")

    sender = Sender("mx.track.test", Broken(["127.0.0.1:9"]))
    outcome = await send(sender, "example.com")
    assert outcome == Outcome(TEMPORARY, None, "KeyError: 'surprise'", "example.com", reached=None)
    assert sender._destinations == {}


# kept connections


async def test_a_kept_connection_carries_the_next_message_without_a_greeting() -> None:
    async with SmtpSink() as sink, sending() as sender:
        for n in range(5):
            assert (await send(sender, sink, recipient=f"r{n}@example.com")).kind is DELIVERED
            assert sender.stats() == {"open": 1, "idle": 1}
        assert sink.sessions == 1
        assert [message.recipients for message in sink.accepted] == [[f"r{n}@example.com"] for n in range(5)]
        assert "RSET" not in sink.commands
    assert sink.commands[-1] == "QUIT"


@pytest.mark.parametrize(
    "answer", [Close(), "421 4.4.2 idle for too long", "452 too many messages", "503 what", b"garbage\r\n"]
)
@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", "stepwise"])
async def test_a_kept_connection_that_takes_no_more_mail_is_replaced(answer: Step, extensions: list[str]) -> None:
    await replaced(SmtpSink(script={"mail": [None, answer]}, extensions=extensions))


@pytest.mark.parametrize("answer", [Close(), "421 4.3.2 shutting down", Close("421 4.3.2 shutting down")])
async def test_a_kept_connection_whose_end_answers_rcpt_is_replaced(answer: Step) -> None:
    await replaced(SmtpSink(script={"rcpt": [None, answer]}))


async def replaced(sink: SmtpSink) -> None:
    async with sink, sending() as sender:
        for _ in range(2):
            assert (await send(sender, sink)).kind is DELIVERED
        assert sink.sessions == 2
        await until(lambda: sender.stats() == {"open": 1, "idle": 1})


async def test_a_dead_kept_connection_is_replaced_once_only() -> None:
    async with SmtpSink(script={"mail": [None, Close(), Close()]}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.text) == (TEMPORARY, "MAIL: the next hop closed the connection")
        assert sink.sessions == 2


@pytest.mark.parametrize("stage", ["data", "dot"])
async def test_a_kept_connection_lost_later_is_not_replaced(stage: str) -> None:
    async with SmtpSink(script={stage: [None, Close()]}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED
        assert (await send(sender, sink)).kind is not DELIVERED
        assert sink.sessions == 1


@pytest.mark.parametrize("last_words", ["250 ok", "250 ok\r\n421 4.4.2 bye"])
async def test_a_connection_that_the_next_hop_closes_is_forgotten(last_words: str) -> None:
    async with SmtpSink(script={"dot": Close(last_words)}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED
        await until(lambda: sender.stats() == {"open": 0, "idle": 0} and not sender._destinations)


async def test_a_connection_on_which_the_next_hop_says_something_is_forgotten() -> None:
    def bye_later(session: SinkSession, _: str) -> Step:
        asyncio.get_running_loop().call_later(0.02, session.say, "421 4.4.2 idle for too long")
        return None

    async with SmtpSink(script={"dot": bye_later}) as sink, sending() as sender:
        assert (await send(sender, sink)).kind is DELIVERED
        await until(lambda: sender.stats() == {"open": 0, "idle": 0})
        assert (await send(sender, sink)).kind is DELIVERED
        assert sink.sessions == 2


async def test_an_unused_connection_is_quit_after_its_time() -> None:
    async with SmtpSink() as sink, sending(idle_timeout=0.05) as sender:
        assert (await send(sender, sink)).kind is DELIVERED
        await sink.wait(lambda sink: "QUIT" in sink.commands)
        await until(lambda: sender.stats() == {"open": 0, "idle": 0})
        assert sender._destinations == {}
        assert (await send(sender, sink)).kind is DELIVERED  # and the clockwork goes on
        await sink.wait(lambda sink: sink.commands.count("QUIT") == 2)


async def test_of_too_many_kept_connections_the_oldest_is_quit() -> None:
    async with SmtpSink() as first, SmtpSink() as second, sending(max_kept=1) as sender:
        await send(sender, first)
        await send(sender, second)
        assert sender.stats()["idle"] == 1
        await first.wait(lambda sink: "QUIT" in sink.commands)
        assert "QUIT" not in second.commands


async def test_a_connection_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.smtp_out.sender.MAX_AGE", -1.0)
    async with SmtpSink() as sink, sending() as sender:
        for _ in range(2):
            await send(sender, sink)
        assert sink.sessions == 2
        await sink.wait(lambda sink: sink.commands.count("QUIT") == 2)


@pytest.mark.parametrize(
    ("greeting", "sessions"), [("220 mx.test ESMTP Exim 4.96 Tue, 01 Dec 2026", 2), ("220 mx.test ESMTP Eximius", 1)]
)
async def test_exim_gets_no_eleventh_message_by_one_connection(greeting: str, sessions: int) -> None:
    async with SmtpSink(script={"connect": greeting}) as sink, sending() as sender:
        for number in range(11):
            assert (await send(sender, sink)).kind is DELIVERED
            assert sink.sessions == (1 if number < 10 else sessions)


async def test_next_hops_that_differ_in_anything_share_no_connection() -> None:
    async with SmtpSink() as sink, sending() as sender:
        for next_hop in (NextHop(sink.host, sink.port, "opportunistic"), NextHop(sink.host, sink.port, "none")):
            await sender.send(next_hop, "example.com", "", "a@example.com", Content(b"", len(BODY), BODY))
        assert sink.sessions == 2


# how many at a time


async def test_connections_to_one_destination_are_limited_and_served_in_order() -> None:
    async with SmtpSink(script={"dot": lambda *_: Slow(0.01, "250 ok")}) as sink:
        async with sending(per_destination=3) as sender:
            outcomes = await asyncio.gather(*[send(sender, sink, recipient=f"r{n}@example.com") for n in range(15)])
        assert {outcome.kind for outcome in outcomes} == {DELIVERED}
        assert (sink.peak, sink.sessions) == (3, 3)
        order = [int(message.recipients[0][1:].partition("@")[0]) for message in sink.accepted]
        assert all(abs(place - n) < 3 for place, n in enumerate(order))


def no_more_than(most: int) -> Callable[[SinkSession, str], Step]:
    def connect(session: SinkSession, _: str) -> Step:
        return Close("421 4.7.0 too many connections from your host") if session.sink.live > most else None

    return connect


@pytest.mark.parametrize("most", [1, 3])
async def test_mail_waits_for_the_sessions_that_a_next_hop_takes_where_it_refuses_more(most: int) -> None:
    async with (
        SmtpSink(script={"connect": no_more_than(most), "dot": lambda *_: Slow(0.01, "250 ok")}) as sink,
        sending(per_destination=10) as sender,
    ):
        outcomes = await asyncio.gather(*[send(sender, sink) for _ in range(40)])
        assert {outcome.kind for outcome in outcomes} == {DELIVERED}
        before = sink.sessions
        outcomes = await asyncio.gather(*[send(sender, sink) for _ in range(40)])
        assert {outcome.kind for outcome in outcomes} == {DELIVERED}
        assert sink.sessions == before  # it remembers how many are taken


async def test_after_some_minutes_all_connections_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.smtp_out.slots.FEWER_FOR", 0.05)
    async with (
        SmtpSink(script={"connect": no_more_than(1), "dot": lambda *_: Slow(0.01, "250 ok")}) as sink,
        sending(per_destination=3) as sender,
    ):
        await asyncio.gather(*[send(sender, sink) for _ in range(3)])
        sink.script["connect"] = None
        await asyncio.sleep(0.06)
        outcomes = await asyncio.gather(*[send(sender, sink) for _ in range(30)])
        assert {outcome.kind for outcome in outcomes} == {DELIVERED}
        assert sink.peak == 3


async def test_a_next_hop_that_refuses_every_connection_is_not_reached_and_keeps_nobody_waiting() -> None:
    async with (
        SmtpSink(script={"connect": lambda *_: Close("421 4.3.2 shutting down")}) as sink,
        sending(per_destination=5) as sender,
    ):
        outcomes = await asyncio.gather(*[send(sender, sink) for _ in range(12)])
        assert {(outcome.kind, outcome.code, outcome.reached) for outcome in outcomes} == {(TEMPORARY, 421, False)}
        assert sink.sessions == 12
        sink.script["connect"] = None
        assert (await send(sender, sink)).kind is DELIVERED


async def test_a_place_is_free_when_the_session_before_has_said_quit() -> None:
    script: dict[str, Script] = {"connect": no_more_than(1), "quit": [Slow(0.05, "221 bye")]}
    async with SmtpSink(script=script) as sink, sending() as sender:
        await send(sender, sink)
        (session,) = sender._kept
        sender._retire(session)
        assert (await send(sender, sink)).kind is DELIVERED


@pytest.mark.parametrize("other", ["mx.test", "alias.test"])
async def test_what_another_domain_keeps_at_a_server_that_takes_no_more_gives_way(dns: DnsServer, other: str) -> None:
    dns.table |= {
        ("one.test", "MX"): ["10 mx.test."],
        ("two.test", "MX"): [f"10 {other}."],
        ("mx.test", "A"): ["127.0.0.1"],
        ("alias.test", "A"): ["127.0.0.1"],
    }
    async with (
        SmtpSink(script={"connect": no_more_than(1)}) as sink,
        SmtpSink() as elsewhere,
        sending(dns, mx_port=sink.port) as sender,
    ):
        await send(sender, elsewhere)
        assert [(await send(sender, domain)).kind for domain in ("one.test", "two.test")] == [DELIVERED] * 2
        assert sink.commands.index("QUIT") < sink.commands.index("EHLO mx.track.test", 1)
        assert "QUIT" not in elsewhere.commands


async def test_a_server_that_is_busy_with_another_domain_is_not_taken_for_one_that_is_down(dns: DnsServer) -> None:
    dns.table |= {(domain, "MX"): ["10 mx.test."] for domain in ("one.test", "two.test")}
    dns.table["mx.test", "A"] = ["127.0.0.1"]
    done = asyncio.Event()
    async with (
        SmtpSink(script={"connect": no_more_than(1), "dot": [Later(done, "250 ok")]}) as sink,
        sending(dns, mx_port=sink.port) as sender,
    ):
        first = asyncio.create_task(send(sender, "one.test"))
        await sink.wait(lambda sink: len(sink.messages) == 1)
        second = asyncio.create_task(send(sender, "two.test"))
        await sink.wait(lambda sink: sink.sessions == 2 and sink.live == 1)
        sink.script["connect"] = Close("421 4.3.2 shutting down")
        done.set()
        assert (await first).kind is DELIVERED
        outcome = await second
        assert (outcome.kind, outcome.code, outcome.reached) == (TEMPORARY, 421, None)
        assert (await send(sender, "two.test")).reached is False  # nobody is inside any more


async def test_what_else_a_server_says_to_one_destination_costs_the_others_there_nothing(dns: DnsServer) -> None:
    dns.table |= {(domain, "MX"): ["10 mx.test."] for domain in ("one.test", "two.test")}
    dns.table["mx.test", "A"] = ["127.0.0.1"]
    async with SmtpSink() as sink, sending(dns, mx_port=sink.port) as sender:
        await send(sender, "one.test")
        sink.script["ehlo"] = "454 4.7.0 not now"
        outcome = await send(sender, "two.test")
        assert (outcome.kind, outcome.code, outcome.reached) == (TEMPORARY, 454, False)
        assert sink.sessions == 2
        assert (await send(sender, "one.test")).kind is DELIVERED
        assert sink.sessions == 2


async def test_who_was_refused_and_is_cancelled_leaves_the_others_their_turn() -> None:
    async with (
        SmtpSink(script={"connect": no_more_than(1), "dot": [Slow(0.2, "250 ok")]}) as sink,
        sending(per_destination=3) as sender,
    ):
        first = asyncio.create_task(send(sender, sink))
        await sink.wait(lambda sink: "DATA" in sink.commands)
        second, third = (asyncio.create_task(send(sender, sink)) for _ in range(2))
        await sink.wait(lambda sink: sink.sessions == 3 and sink.live == 1)
        second.cancel()
        assert [(await task).kind for task in (first, third)] == [DELIVERED, DELIVERED]


async def test_a_destination_that_hangs_does_not_hold_up_another() -> None:
    async with SmtpSink(script={"mail": Hang()}) as stuck, SmtpSink() as sink, sending(per_destination=1) as sender:
        waiting = [asyncio.create_task(send(sender, stuck)) for _ in range(3)]
        await stuck.wait(lambda sink: sink.sessions == 1)
        assert (await send(sender, sink)).kind is DELIVERED
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize(
    "script",
    [{"connect": [Hang()]}, {"ehlo": [Hang()]}, {"mail": [Hang()]}, {"content": [Stall()]}, {"dot": [Hang()]}],
)
async def test_a_cancelled_attempt_cuts_its_connection_and_frees_its_slot(script: dict[str, Script]) -> None:
    async with SmtpSink(script=script) as sink, sending(per_destination=1) as sender:
        first = asyncio.create_task(send(sender, sink))
        await sink.wait(lambda sink: sink.sessions == 1 and not any(sink.script.values()))
        second = asyncio.create_task(send(sender, sink))
        third = asyncio.create_task(send(sender, sink))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        assert (await third).kind is DELIVERED
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert sender.stats() == {"open": 1, "idle": 1}


# the end


async def test_close_says_quit_and_waits_for_the_answers() -> None:
    async with SmtpSink(script={"quit": Slow(0.05, "221 bye")}) as sink:
        async with sending() as sender:
            await send(sender, sink)
        assert sender.stats() == {"open": 0, "idle": 0}
        assert sink.commands[-1] == "QUIT"


async def test_close_is_bounded_and_cuts_what_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.smtp_out.sender.QUIT_TIME", 0.05)
    async with SmtpSink(script={"quit": Hang(), "dot": [None, Hang()]}) as sink, sending() as sender:
        await send(sender, sink)
        running = asyncio.create_task(send(sender, sink))
        await sink.wait(lambda sink: len(sink.messages) == 2)
        idle = asyncio.create_task(send(sender, sink))
        await idle
        await sender.close()
        outcome = await running
        assert (outcome.kind, outcome.text) == (OutcomeKind.AMBIGUOUS, "end of data: the connection was cut")
        assert sender.stats() == {"open": 0, "idle": 0}


async def test_after_close_nothing_is_kept() -> None:
    async with SmtpSink() as sink, sending() as sender:
        await sender.close()
        assert (await send(sender, sink)).kind is DELIVERED
        await sink.wait(lambda sink: "QUIT" in sink.commands)
        assert sender.stats()["idle"] == 0


async def test_a_next_hop_that_never_answers_quit_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.smtp_out.connection.QUIT_TIME", 0.02)
    async with SmtpSink(script={"quit": Hang()}) as sink, sending(idle_timeout=0.01, timeouts=Timeouts()) as sender:
        await send(sender, sink)
        await sink.wait(lambda sink: sink.live == 0)
        await until(lambda: sender.stats()["open"] == 0)
