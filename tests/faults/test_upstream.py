"""The way to the next hop failing at any point: what was accepted arrives, and what may have come twice says so."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.backoff import JITTER, MAIL_DELAYS
from relay.core.model import Method
from relay.smtp_out import Timeouts
from relay.store.schema import attempts
from tests.dump_sink import DumpSink
from tests.ledger import SOAK, Account, Ledger, is_drained
from tests.parts import DOMAIN, MAIL, SITE, Parts, running_parts
from tests.scenarios.world import world
from tests.smtp_sink import Script, SmtpSink, Stall
from tests.store_fixtures import fresh_keys, target_of
from tests.tcp_proxy import AfterDot, Cut, Fault, FaultProxy, HalfClose, Mute, Side, Slow

pytestmark = pytest.mark.fault

#: Messages whose answer is lost after the final dot.
DROPS = 1000 if SOAK else 20
#: Every so many octets of a session it is cut.
STEP = 1 if SOAK else 20
#: Of the time limits of RFC 5321 §4.5.3.2 those that are waited for, scaled down; seconds.
TIMEOUTS = Timeouts(greeting=0.4, final=0.4)
LATER = MAIL_DELAYS[0] * (1 + JITTER) + 1
_SUBJECT = re.compile(rb"\r\nSubject: ([^\r]*)\r\n")


def subject(said: bytes) -> bytes:
    """Of the last message."""
    return _SUBJECT.findall(said)[-1]


def once() -> Callable[[bytes], bool]:
    """Each letter is struck once."""
    seen: set[bytes] = set()

    def strikes(said: bytes) -> bool:
        is_new = subject(said) not in seen
        seen.add(subject(said))
        return is_new

    return strikes


async def test_answers_lost_after_the_dot_repeat_each_letter_once_and_history_says_so(tmp_path: Path) -> None:
    ledger, strikes = Ledger(1), once()

    def lost(connection: int) -> Fault:
        return AfterDot("reset" if connection % 2 else "close", strikes)

    async with (
        DumpSink() as sink,
        FaultProxy(sink.port, lost) as proxy,
        world(tmp_path, {"forward": {"next_hop": proxy.url}}) as relay,
    ):
        await ledger.send(lambda: relay.daemon.smtp_port, most=DROPS)
        await relay.until(
            lambda: relay.row("SELECT count(*) FROM attempts WHERE outcome = 'ambiguous'"), lambda row: row == (DROPS,)
        )
        assert await relay.rows("SELECT DISTINCT possibly_repeated FROM deliveries") == [(1,)]
        await relay.retry_all()
        await relay.until(lambda: asyncio.to_thread(is_drained, relay.daemon), bool)
        account = await asyncio.to_thread(Account.of, relay.daemon, sink.messages(), relay.crm.posts)
        account.must_balance(ledger, Counter(range(DROPS)))
        assert account.repeats == DROPS
        for message in ledger.acknowledged.values():
            (delivery,) = (await relay.call("GET", f"/v1/messages/{message}"))["deliveries"]
            assert (delivery["state"], delivery["possibly_repeated"]) == ("forwarded", True)
    print(f"\n{DROPS} answers lost after the dot: all arrived, each once more and flagged")


WAYS: dict[str, tuple[Fault, str, bool]] = {
    # what happens, what is written of it, whether the mail may have arrived
    "silent": (Mute(), "greeting: no answer in 0.4 s", False),
    "closed at once": (Cut(Side.SERVER, 0), "greeting: the next hop closed the connection", False),
    "reset at once": (Cut(Side.SERVER, 0, reset=True), "greeting: Connection reset by peer", False),
    "closed in the greeting": (Cut(Side.SERVER, 10), "greeting: the next hop closed the connection", False),
    "slow as a loris": (Slow(20), "greeting: no answer in 0.4 s", False),
    "half-closed at once": (HalfClose(0), "greeting: the next hop closed the connection", False),
    "half-closed in EHLO": (HalfClose(40), "EHLO: the next hop closed the connection", False),
    "reset in EHLO": (Cut(Side.SERVER, 40, reset=True), "EHLO: Connection reset by peer", False),
    "closed after the dot": (AfterDot("close"), "end of data: the next hop closed the connection", True),
    "reset after the dot": (AfterDot("reset"), "end of data: Connection reset by peer", True),
    "silent after the dot": (AfterDot("silence"), "end of data: no answer in 0.4 s", True),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_a_connection_fails_is_named_and_the_mail_arrives_later(way: str, tmp_path: Path) -> None:
    fault, answer, may_have_come = WAYS[way]
    async with (
        SmtpSink() as sink,
        FaultProxy(sink.port, fault) as proxy,
        running_parts(tmp_path, proxy.url, timeouts=TIMEOUTS) as parts,
    ):
        await parts.send()
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert (row["answer"], row["code"], row["possibly_repeated"]) == (answer, None, int(may_have_come))
        proxy.fault = None
        await arrive_later(parts)
        assert len(sink.accepted) == 1 + may_have_come
        (row,) = await parts.delivery_rows()
        assert row["possibly_repeated"] == may_have_come


async def test_a_next_hop_that_refuses_connections_gets_all_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        SmtpSink() as sink,
        FaultProxy(sink.port) as proxy,
        running_parts(tmp_path, proxy.url, start_forwarding=False) as parts,
    ):
        proxy.refuse()
        monkeypatch.setattr(parts.forwarder, "takes", lambda *_: False)
        for number in range(20):
            await parts.send(mail=MAIL + b"%d\r\n" % number)
        monkeypatch.undo()
        await parts.forwarder.start()
        await parts.until(lambda rows: {row["state"] for row in rows} == {"deferred"})
        # All that were under way failed together. That is one failure: the next try is in a minute, not in an hour.
        await proxy.listen()
        await arrive_later(parts)
        assert len(sink.accepted) == 20


async def test_a_slow_next_hop_within_its_limits_gets_the_mail_at_once(tmp_path: Path) -> None:
    limits = Timeouts(greeting=1.0, ehlo=1.0, mail=1.0, rcpt=1.0, data=1.0)
    async with (
        SmtpSink() as sink,
        FaultProxy(sink.port, Slow(4000)) as proxy,
        running_parts(tmp_path, proxy.url, timeouts=limits) as parts,
    ):
        await parts.send(mail=MAIL + b"x" * 4000 + b"\r\n")  # longer on its way than any of these
        (row,) = await parts.until(lambda rows: rows[0]["state"] != "queued")
        assert (row["state"], row["attempts"]) == ("forwarded", 1)


async def test_a_session_cut_after_any_number_of_octets_loses_nothing(tmp_path: Path) -> None:
    async with (
        DumpSink() as sink,
        FaultProxy(sink.port) as proxy,
        running_parts(tmp_path, proxy.url) as parts,
    ):
        await parts.send(mail=numbered(0))
        await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        length = dict(proxy.passed)
        cuts = list(every_cut(length))
        proxy.drop()  # for each a session of its own: a kept one would be cut somewhere in the middle
        await parts.until(lambda rows: parts.sender.stats()["open"] == 0)
        for number, cut in enumerate(cuts, 1):
            parts.forwarder.retry_now()
            proxy.fault = cut
            await parts.send(mail=numbered(number))
            await parts.until(lambda rows, number=number: len(rows) > number and rows[number]["state"] != "queued")
        proxy.fault = None
        parts.clock.ahead += LATER
        parts.forwarder.retry_now()
        await arrive_later(parts)
        copies = Counter(subject(b"\r\n" + message.wire) for message in sink.messages())
        assert all(message.wire.endswith(numbered(0)[-20:]) for message in sink.messages()), "cut short"
        rows = await parts.delivery_rows()
        for number, row in enumerate(rows):
            came = copies[b"letter %d" % number]
            assert 1 <= came <= 2, (came, cuts[number - 1])
            assert came == 1 or row["possibly_repeated"], cuts[number - 1]
        outcomes = Counter(outcome for (outcome,) in await parts.store.reader.all(select(attempts.c.outcome)))
        assert outcomes.keys() == {"delivered", "temporary", "ambiguous"}
        print(f"\n{len(cuts)} cuts of a session of {length}: {outcomes}, {copies.total() - len(rows)} came twice")


def every_cut(length: dict[Side, int]) -> Iterator[Cut]:
    for side in Side:
        for after in range(0, length[side], STEP):
            yield Cut(side, after, reset=after % 3 == 0)


def numbered(number: int) -> bytes:
    return b"From: ann@customer.test\r\nSubject: letter %d\r\n\r\nHello, is it still to be had?\r\n..dot\r\n" % number


async def arrive_later(parts: Parts) -> None:
    """When the back-offs are over everything arrives."""
    for _ in range(4):  # one tries a destination that was down before the others go
        parts.clock.ahead += LATER
        parts.forwarder.wake()
        if all(row["state"] == "forwarded" for row in await settled(parts)):
            return
    raise AssertionError(await parts.delivery_rows())


async def settled(parts: Parts) -> list[dict[str, Any]]:
    """The deliveries when nothing is under way and nothing due can go."""

    def over(rows: list[dict[str, Any]]) -> bool:
        now = parts.clock()
        return all(row["claim"] is None and (row["state"] == "forwarded" or row["next_at"] > now) for row in rows)

    return await parts.until(over)


@pytest.mark.parametrize("stage", ["connect", "mail", "content", "dot"])
async def test_next_hops_that_hang_leave_a_sound_one_memory_and_slots(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.core.destinations.MEMORY", 1_000_000)
    monkeypatch.setattr("relay.core.destinations.IN_FLIGHT", 40)
    large = MAIL + (b"y" * 70 + b"\r\n") * 1000
    script: dict[str, Script] = {stage: Stall()}
    keys = fresh_keys(tmp_path / "keys")
    async with AsyncExitStack() as stack:
        stuck = [await stack.enter_async_context(SmtpSink(script=script)) for _ in range(3)]
        sink = await stack.enter_async_context(SmtpSink())
        targets = [
            target_of(Method.PLUS, f"stuck{number}@example.com", DOMAIN, next_hop=keys.seal(f"smtp://{hop.address}"))
            for number, hop in enumerate(stuck)
        ]
        site = replace(SITE, targets=(*SITE.targets, *targets))
        parts = await stack.enter_async_context(
            running_parts(tmp_path, f"smtp://{sink.address}", sites=(site,), grace=0.0)
        )
        for number in range(8):
            for name in range(len(stuck)):
                await parts.send(f"stuck{name}@{DOMAIN}", mail=large + b"%d\r\n" % number)
        for number in range(8):
            await parts.send(mail=large + b"%d\r\n" % number)
        await sink.wait_for_messages(8)
        assert all(hop.sessions > 0 and not hop.accepted for hop in stuck)
